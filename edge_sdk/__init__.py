"""The device's side of fedpeat: trains an adapter inside a memory budget, without PyTorch."""
