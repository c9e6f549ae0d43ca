"""How the blocks of a network are run: compiled one by one, or computed again going back instead of kept."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from imagen_nb.layers import Attention, FeedForward, ResBlock


def blocks_of(
    network: nn.Module,  # any
) -> list[nn.Module]:
    "What its lists of modules hold."
    lists = [part for part in network.children() if isinstance(part, nn.ModuleList)]
    return [block for blocks in lists for block in blocks]


def recompute_blocks(
    network: nn.Module,  # any; its blocks are what its lists of modules hold
) -> nn.Module:  # the same network, its names unchanged
    "Keep only what goes into a block; going back, its inside is computed again: less memory, more time."
    for block in blocks_of(network) or [network]:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return network


def compile_blocks(
    network: nn.Module,  # any; one that has no block of ours is compiled as a whole
    **options,  # of `torch.compile`
) -> nn.Module:  # the same network, its names unchanged
    "Compile every block by itself: most are alike, so little is compiled; one graph each."
    import torch._dynamo as dynamo

    # each shape of a block is a version of the same code; the default keeps eight
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 128)
    ours = (ResBlock, Attention, FeedForward)
    blocks: list[nn.Module] = [block for block in network.modules() if isinstance(block, ours)]
    for block in blocks or [network]:
        block.compile(**dict(fullgraph=bool(blocks), dynamic=False) | options)
    return network
