"""Who made a pack: signing it, and judging a signature by a trust file and revocation lists.

`signer` makes signatures and `library` has them verified, both through the OpenSSF `model-signing` library; `bundle`
reads what a signature says, strictly; `trust` and `revocation` read whose signatures count; `check` joins them.
Nothing here imports the library before a signature is made, or one by a trusted signer is verified.
"""
