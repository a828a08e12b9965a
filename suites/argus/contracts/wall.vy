# pragma version 0.4.3
"""
@title An informer that is a contract and takes no money
"""


@external
@payable
def act(target: address, data: Bytes[4096]):
    """@notice Call another contract with what came along."""
    raw_call(target, data, value=msg.value)
