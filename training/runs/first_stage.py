"""Stage 1, of a run and of the heads that judge one: a network learns from images in batches with outliers."""

from training.config import Config
from training.data.batches import Batches, Easiness
from training.data.loading import Data
from training.methods.methods import Method
from training.methods.objective import stage1_losses
from training.network import averaged
from training.network.network import Network
from training.network.standardised import standardised
from training.runs.loop import Loop


def first_stage(
    config: Config, method: Method, data: Data, network: Network, loop: Loop, easiness: Easiness | None = None
) -> None:
    """`network` learns, and is kept in the state of `loop` under "network".

    Where several heads are averaged it learns as often, each time from the start and in another order. Without
    `easiness` no outliers are mined.
    """
    device = next(network.parameters()).device
    with standardised(network, data) as data:
        losses = stage1_losses(config, method, data, network, device)
        for turn in averaged.turns(network, loop.state, config.heads_averaged):
            batches = Batches(
                data.train, data.outliers if method.takes_outliers else None, config.batch_images, seed=config.seed,
                stage=1 + 2 * turn, device=device, sampler=method.sampler, per_image=method.outliers_per_image,
                mining=method.mining,
            )  # fmt: skip
            loop.run(
                network.train(), list(network.parameters()), batches, losses,
                epochs=config.epochs, learning_rate=config.learning_rate, key="network", easiness=easiness,
                title=averaged.title(loop.stage, turn, config.heads_averaged),
            )  # fmt: skip
