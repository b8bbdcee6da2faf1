"""A device's part in secure sums: what it says and never says (`member`), what it keeps (`vault`), and who acts on it
(`sums`). What a secure sum is: `edge_sdk.wire.secure`.
"""
