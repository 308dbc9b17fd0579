"""`python -m e5onnx`: the command `e5onnx`."""

import sys

from .cli import main

sys.exit(main())
