"""The server: an OpenAI-compatible API in front of models, the chat page, the request log, review.

The parts share the types of `meditron.serve.state`, and no part reaches a model except through its
`ChatSource`. Every part keeps its data in a folder of the user (`ServeConfig.data`), never beside a model.
"""
