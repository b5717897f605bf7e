"""The contract with the hub: topics, messages, chunks. Both ends import this room and nothing else of each other's."""
