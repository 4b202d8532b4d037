"""Settings for the Python interface: nothing enters, a run that trains in no time leaves."""

import mimkit


def tiny(epochs: int = 1) -> mimkit.Pretrain:
    """Settings of mae_mini_28 that train in no time."""
    config = mimkit.recipe("mae_mini_28")
    config.epochs, config.batch_size = epochs, 8
    config.encoder.width, config.encoder.depth, config.encoder.heads = 16, 1, 2
    config.method.decoder.width, config.method.decoder.heads = 8, 2
    machine = config.machine
    machine.device, machine.precision, machine.attention = "cpu", "float32", "fused"
    machine.threads, machine.workers, machine.evals, machine.tensorboard = 1, 0, 1, False
    machine.log_every = 1
    return config
