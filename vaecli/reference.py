"""Which number to expect: the test losses that the tutorial's recipe gave on MNIST.

Nats per image after each epoch, of seeds 0, 1 and 2, each on one thread of a Zen 4 core with torch 2.15:
seed 0 in float32, the others in bf16, which made no difference over ten epochs (README, Speed). `make
results SEEDS=3` makes such runs again; other hardware or threads round otherwise.
"""

from vaecli.metadata import Metadata
from vaecli.run import Settings

_RECIPE = Settings()
_RECIPE_FIELDS = ("batch_size", "lr", "lr_schedule", "beta", "kl_warmup")
# Digests of MNIST's splits, as in every weights file.
_TRAIN = "c41b322ede5b4fc991fbf5440b21cefc76cb0418e0ebf66b8f78109632b41509"
_TEST = "f5147f7baa1787ec4b3cd00068f8ec8a61d969373b74639b6aef5c981fc5a5b2"

# fmt: off
TEST_LOSSES: dict[int, tuple[tuple[float, ...], ...]] = {
    2: (
        (
            167.39, 161.73, 158.95, 157.03, 156.08, 155.82, 154.89, 155.03, 154.88, 154.54, 154.33, 154.04, 153.62,
            153.30, 153.12, 152.94, 153.54, 153.17, 152.79, 153.00, 152.37, 152.20, 152.37, 152.21, 152.14, 152.19,
            151.97, 151.85, 152.02, 152.07, 152.37, 151.88, 151.52, 151.54, 151.80, 151.63, 151.63, 151.45, 151.89,
            151.41, 151.34, 151.34, 151.23, 151.82, 151.38, 151.53, 151.18, 151.30, 151.10, 151.32,
        ),
        (
            167.46, 161.33, 159.57, 157.39, 157.07, 156.17, 155.20, 155.31, 155.07, 154.30, 153.83, 153.22, 153.10,
            152.79, 153.17, 153.88, 152.72, 152.55, 152.08, 152.43, 152.23, 152.13, 151.78, 151.63, 152.14, 151.69,
            151.68, 151.58, 151.36, 151.38, 151.44, 151.74, 151.44, 151.30, 151.62, 151.38, 150.91, 151.12, 151.50,
            151.26, 150.86, 150.89, 151.11, 151.10, 151.16, 150.80, 151.00, 150.97, 150.99, 151.02,
        ),
        (
            168.50, 161.16, 158.82, 157.88, 156.14, 156.15, 155.43, 154.49, 154.82, 153.66, 153.51, 153.09, 153.59,
            153.17, 152.89, 152.82, 152.35, 152.38, 152.25, 151.87, 151.85, 151.96, 151.51, 151.85, 151.81, 151.66,
            151.89, 151.32, 151.26, 151.20, 151.39, 151.14, 151.21, 150.99, 151.73, 150.73, 150.70, 151.00, 150.86,
            150.98, 150.73, 151.25, 150.52, 150.90, 151.27, 150.90, 150.69, 150.32, 150.59, 151.05,
        ),
    ),
    4: (
        (
            141.34, 135.71, 133.82, 132.54, 131.66, 130.76, 130.38, 130.06, 131.15, 129.44, 129.26, 129.17, 128.53,
            128.62, 128.58, 128.21, 128.18, 128.14, 128.12, 127.81, 127.45, 127.50, 127.45, 127.49, 127.18, 127.58,
            127.19, 127.24, 127.07, 126.85, 126.93, 126.89, 126.82, 126.77, 126.61, 126.65, 126.84, 126.86, 126.55,
            126.74, 126.50, 126.80, 126.41, 126.55, 126.34, 126.40, 126.47, 126.38, 126.45, 126.39,
        ),
        (
            143.11, 136.76, 135.85, 133.06, 131.66, 131.98, 130.83, 130.31, 130.23, 129.13, 128.98, 129.65, 128.34,
            128.41, 128.00, 128.18, 128.30, 128.23, 127.60, 127.71, 127.33, 127.54, 127.22, 127.01, 127.07, 126.85,
            127.04, 127.13, 126.72, 126.97, 126.49, 126.67, 126.76, 126.45, 126.37, 126.79, 126.36, 126.43, 126.56,
            126.29, 126.47, 126.38, 126.93, 126.62, 127.06, 126.29, 126.29, 126.24, 126.27, 126.14,
        ),
        (
            141.60, 135.94, 133.85, 132.92, 131.64, 130.89, 130.51, 129.98, 129.89, 129.66, 129.25, 129.00, 129.01,
            128.61, 128.24, 129.20, 128.01, 128.42, 128.07, 128.39, 127.64, 127.65, 127.63, 127.76, 127.41, 127.11,
            128.56, 127.22, 127.42, 126.95, 126.85, 127.01, 126.96, 126.86, 126.66, 126.80, 126.60, 126.92, 126.75,
            126.58, 126.54, 126.97, 126.83, 126.41, 126.47, 126.65, 126.32, 126.47, 126.28, 126.65,
        ),
    ),
}
# fmt: on


def expected(metadata: Metadata) -> tuple[float, ...] | None:
    """The test losses of the reference runs at a checkpoint's z_dim and epoch.

    None if there is none to compare with: other images, other settings than the recipe's, more epochs.
    """
    same_data = (metadata.data.train_sha256, metadata.data.test_sha256) == (_TRAIN, _TEST)
    same_recipe = all(getattr(metadata.training, name) == getattr(_RECIPE, name) for name in _RECIPE_FIELDS)
    runs = TEST_LOSSES.get(metadata.z_dim, ())
    if not (same_data and same_recipe and runs and 1 <= metadata.epoch <= len(runs[0])):
        return None
    return tuple(run[metadata.epoch - 1] for run in runs)


def margin(epoch: int) -> float:
    """How far beyond the range of the reference runs another one may well fall, in nats.

    Of these runs and one of another program, each lay at most 2.0 nats beyond the range of the others
    before the 10th epoch, and 1.4 from there.
    """
    return 2.0 if epoch < 10 else 1.5
