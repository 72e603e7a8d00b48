"""Which number to expect: the test losses that the tutorial's recipe gave on MNIST.

Nats per image after each epoch, of seeds 0, 1 and 2, on two Zen 4 cores with torch 2.15: seed 0 in
float32, the others in bf16, which makes no difference (README, Speed). `make results SEEDS=3` makes
them again.
"""

from vaecli.checkpoint import Metadata
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
    ),
    4: (
        (
            141.34, 135.71, 133.82, 132.54, 131.66, 130.76, 130.38, 130.06, 131.15, 129.44, 129.26, 129.17, 128.53,
            128.62, 128.58, 128.21, 128.18, 128.14, 128.12, 127.81, 127.45, 127.50, 127.45, 127.49, 127.18, 127.58,
            127.19, 127.24, 127.07, 126.85, 126.93, 126.89, 126.82, 126.77, 126.61, 126.65, 126.84, 126.86, 126.55,
            126.74, 126.50, 126.80, 126.41, 126.55, 126.34, 126.40, 126.47, 126.38, 126.45, 126.39,
        ),
    ),
}
# fmt: on


def expected(metadata: Metadata, test_sha256: str) -> tuple[float, ...] | None:
    """The test losses of the reference runs at a checkpoint's z_dim and epoch, on a test split of this digest.

    None if there is none to compare with: other images, other settings than the recipe's, more epochs.
    """
    same_data = (metadata.data.train_sha256, metadata.data.test_sha256, test_sha256) == (_TRAIN, _TEST, _TEST)
    same_recipe = all(getattr(metadata.training, name) == getattr(_RECIPE, name) for name in _RECIPE_FIELDS)
    runs = TEST_LOSSES.get(metadata.z_dim, ())
    if not (same_data and same_recipe and runs and 1 <= metadata.epoch <= len(runs[0])):
        return None
    return tuple(run[metadata.epoch - 1] for run in runs)


def margin(epoch: int) -> float:
    """How far beyond the reference runs another seed may well fall, in nats.

    Of seven runs of each z_dim (three seeds in two precisions, and another program) the test losses
    of one epoch lay up to 2.9 apart before the 10th, and up to 1.1 there.
    """
    return 2.0 if epoch < 10 else 1.0
