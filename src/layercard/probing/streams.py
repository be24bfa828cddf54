"""Which stream of positions a stack of layers reads: the input's, an encoder-decoder's target, or one of its own."""

from __future__ import annotations

from torch import nn

from layercard.anatomy.layers import LayerStack, all_stacks
from layercard.probing.documents import Stream
from layercard.probing.labels import bare, is_encoder_decoder

SIDES: dict[str, Stream] = {"encoder": "source", "decoder": "target"}


def stream_of(model: nn.Module, stack: LayerStack) -> Stream:
    """Return the stream that `stack` reads.

    Of an encoder-decoder the path tells, such as `decoder.block`. Elsewhere the layers of the part that transformers calls
    the decoder read the input, and other stacks are towers for images or sound.
    """
    base = bare(model)
    if is_encoder_decoder(base):
        return next((SIDES[part] for part in stack.path.split(".") if part in SIDES), "apart")
    if not hasattr(base, "get_decoder"):
        return "source"
    decoder = base.get_decoder()
    if not all_stacks(decoder):  # some models call their output embeddings `decoder`
        return "source"
    inside = {id(module) for module in decoder.modules()}
    return "source" if id(stack.layers[0]) in inside else "apart"
