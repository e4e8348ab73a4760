"""Reads a GPTQ or int-quantized checkpoint with numpy alone, by the formats' own definitions, and compares every weight with
what tilewright read (runtime/examples/dequantise.rs): they must be the same f32, bit for bit.

    python read_quantised.py CHECKPOINT_DIR weights.safetensors

Needs numpy. GPTQ: qweight int32 [in / pack, out] (codes along in, lowest first), qzeros int32 [groups, out / pack]
(checkpoint_format "gptq": less one, modulo 2^bits), scales f16 [groups, out], g_idx int32 [in].
"""
import glob, json, os, struct, sys
import numpy as np

TYPES = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "I8": np.int8}


def read(path):
    """Every tensor of a safetensors file whose type numpy has."""
    blob = open(path, "rb").read()
    (size,) = struct.unpack("<Q", blob[:8])
    tensors = {}
    for name, info in json.loads(blob[8 : 8 + size]).items():
        if name != "__metadata__" and info["dtype"] in TYPES:
            a, b = info["data_offsets"]
            data = np.frombuffer(blob[8 + size + a : 8 + size + b], TYPES[info["dtype"]])
            tensors[name] = data.reshape(info["shape"])
    return tensors


def unpack(words, bits, axis):
    """Codes of int32 words, lowest bits first, unpacked along `axis`."""
    words = words.view(np.uint32)
    codes = [(words >> np.uint32(bits * i)) & np.uint32(2**bits - 1) for i in range(32 // bits)]
    stacked = np.stack(codes, axis + 1)
    shape = list(words.shape)
    shape[axis] *= 32 // bits
    return stacked.reshape(shape).astype(np.int64)


def gptq(tensors, name, config):
    bits = config["bits"]
    q = unpack(tensors[name + ".qweight"], bits, 0)
    zeros = unpack(tensors[name + ".qzeros"], bits, 1)
    if config.get("checkpoint_format", "gptq") == "gptq":
        zeros = (zeros + 1) % 2**bits
    g_idx = tensors[name + ".g_idx"]
    scales = tensors[name + ".scales"].astype(np.float64)
    return ((q - zeros[g_idx]) * scales[g_idx]).T.astype(np.float32)


def int8(tensors, name, _):
    return (tensors[name + ".weight"].astype(np.float64) * tensors[name + ".weight_scale"]).astype(np.float32)


def main():
    directory, ours = sys.argv[1], read(sys.argv[2])
    config = json.load(open(os.path.join(directory, "config.json")))["quantization_config"]
    tensors = {}
    for path in sorted(glob.glob(os.path.join(directory, "model*.safetensors"))):
        tensors.update(read(path))
    dequantise = gptq if config["quant_method"] == "gptq" else int8
    weights = different = 0
    for name, ours_w in ours.items():
        theirs = dequantise(tensors, name, config)
        assert theirs.shape == ours_w.shape, (name, theirs.shape, ours_w.shape)
        different += int((theirs != ours_w).sum())
        weights += theirs.size
    print(f"{len(ours)} matrices, {weights} weights, {different} different")
    sys.exit(1 if different or not weights else 0)


main()
