"""From float weights to the artifact: quantization, compression and the file that ships.

`grid` (one level up) says what a code means; `gptq` chooses codes; `quantize` does one tensor or a whole
model; `compressors` are the byte coders; `stored`, `header`, `sizes` and `container` are the artifact format;
`pack` is the stage that takes a run directory from weights to `model.bitgolf`.
"""
