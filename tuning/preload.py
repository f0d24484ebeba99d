"""What every trial imports, imported once in the server that trials are forked from."""

import signal
import warnings

warnings.simplefilter("ignore")
interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the command, not by a trace of these imports

import accelerate  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401

import adapters.files  # noqa: E402, F401
import engine.torch_engine  # noqa: E402, F401
import evaluation.measures  # noqa: E402, F401
import tuning.trial  # noqa: E402, F401

signal.signal(signal.SIGINT, interrupted)
