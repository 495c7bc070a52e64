"""Model directories in Hugging Face's layout: headers to a spec, content hashes, byte ranges, fetch. No torch.

Everything here that reads a disk blocks: callers on an event loop go through `to_thread`, but for the `async`
functions of `fetch` and `upload`, which do so themselves. Pickle files are never opened.

| code | trouble |
|---|---|
| E701 | no model there |
| E702 | an architecture or format that we cannot run |
| E703 | `config.json` is broken, or asks for what we do not do |
| E704 | a weight file is missing, cut off or garbage |
| E705 | a tensor is missing, or has the wrong shape or dtype |
| E706 | content differs from its hash |
| E707 | no source delivered |
| E708 | the disk is full |
| E709 | bytes were asked for that the model does not have |
"""
