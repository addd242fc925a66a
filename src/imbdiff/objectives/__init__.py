"""One file per training objective, and the contract with the evaluator that serves all of them.

An objective never calls a network: it *requests* evaluations and gets *answers*. That makes objectives composable
(equal requests are merged, the rest joined into one batched pass) and safe under data parallelism (one wrapped call).
"""
