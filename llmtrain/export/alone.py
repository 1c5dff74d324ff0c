"""``transformers`` without a network and without bars or warnings on the terminal."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Nothing that is written or opened here needs a network, nor a bar: the libraries are kept from both."""
    import huggingface_hub.constants as hub
    from transformers.utils import logging

    offline, verbosity, bars = hub.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub.HF_HUB_OFFLINE = True
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = offline
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
