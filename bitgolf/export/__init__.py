"""A model for other programs: a folder for Hugging Face Transformers, or an ONNX file."""
