"""What a device and the coordinator say to each other, and the bytes of it.

The only part of `edge_sdk` that `export` and `coordinator` may import. Nothing here trains, decides or keeps time:

- `errors`     who is at fault
- `codec`      frozen dataclasses <-> bounded msgpack
- `messages`   every message, as a frozen dataclass with units in its field names
- `manifest`   what an artifact is made of
- `tensors`    tensor files: the safetensors format, memory-mapped and checked
- `delta`      an adapter's change, with its algebra
- `codecs`     what a delta's numbers become on the wire
- `blobs`      content-addressed storage, the same on both sides
- `chunks`     pulling a blob in pieces: resume, corruption, windows
- `partial`    a blob on its way in, on the disk
- `topics`     the only place that builds or reads an MQTT topic
- `transport`  the seam to MQTT, and the in-memory broker that stands in for it
- `mqtt`       paho behind that seam
- `secure`     what a sum is made of whose parts nobody sees
"""
