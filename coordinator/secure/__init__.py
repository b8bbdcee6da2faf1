"""The coordinator's part in secure sums: who is whose neighbour (`graph`), the steps of a sum (`steps`), and what is
left when the masks are gone (`unmask`). What a secure sum is: `edge_sdk.wire.secure`; what a device does:
`edge_sdk.secure`.
"""
