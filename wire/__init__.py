"""What the bytes mean: ids, records, frames, packs, deltas, paths, signatures.

The ground floor. Everything here is sans-IO: no trio, no clock, no randomness, no files. Functions take
bytes or plain values and give bytes or frozen values; whatever is wrong with the input is raised as
:class:`wire.errors.Refusal` with a stable code of protocol §11.
"""
