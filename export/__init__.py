"""From a checkpoint to a verified ONNX bundle: read, fold, write, simplify, check, verify."""
