"""The kernel side: programs, maps, links, the chain. The only layer that imports bcc or holds descriptors."""
