"""The words of docs/results.md; what stands in braces is filled in."""

INTRODUCTION = """\
<!-- Written by `make paper`; change benchmarks/paper instead. -->
# Results

The experiments of the Stream2LLM paper (MLSys 2026, arXiv 2604.16395), replayed in virtual time on the real scheduler
classes, beside what the paper measured on two H200. `make paper` runs what is missing and writes this page; {num_there:,}
of {num_all:,} runs are there.

**What is real:** the schedulers. vLLM's own `Scheduler` and this library's run as they do in an engine core, with their
queues, block pools, preemptions and plans, and are fed the operations that sessions send. Every run keeps books of
requests, tokens and blocks that must balance.

**What is modelled:** the GPU, by a time for each step that is linear in the tokens computed, the tokens attended to and the
KV read; its coefficients are estimated from the paper's figures, not measured. The workloads, drawn at random so that they
match the paper's tables ([simulation.md](simulation.md)). Scheduling takes no
time; front end, tokenisation, transfers and decoding beyond one token are left out. So ratios say more than seconds, and
nothing here replaces a measurement on a GPU.

Each figure is the median over {num_seeds} seeds, or those of them that are there, of {num_requests:,} requests each
(the paper: one run of 4,309 crawls or 500 searches); an interval wants two seeds at least. Percentiles leave out
ramp-up and drain: a mean retrieval's time at each end, at most a fifth of the run. A request that never got its answer
counts as infinitely late. TTFT counts from the final context to the first token. One output token, prefix caching off,
2,048 tokens a step for crawls and 8,192 for searches, as in the paper.
"""

FIT = """\
## Does the model fit?

vLLM without streaming (NS) at the paper's loads: the only figures that the step time was fitted to.

{table}
The step time's base (4 ms), a token (13.8 us), a pair of tokens in attention (0.48 ns) and the read of a token's KV (19.5 ns)
were estimated before these workloads were made, and not moved for this table. What was moved is the tail of the ANNS
prompts, which the paper's table leaves open above P95: its P99 of 3.1 s at 0.25 queries a second takes prompts of 76,000
tokens. A longer tail would fit 0.25 queries a second better and 2 a second worse.

At delay x10 and x30 NS should be as without: contexts are complete later, but no more unevenly, as arrivals of a Poisson
process stay one when each is put off by a time of its own. In the paper they are not (crawls at 4 QPS: P99 8.97 s instead
of 5.40; searches at 2 QPS: P50 0.725 s instead of 0.383), each from one run; that is not reproduced here.
"""

BESIDE = """\
## Beside the paper

Front ends: `ns` is the usual way; `vllm-s` the paper's vLLM-S, streamed on vLLM's default scheduling; the others are the
paper's policies on this library's scheduler. The whole pool of two H200. Nothing was fitted to the front ends that stream; how
near they come, as the median over loads and front ends, and the ends:

{agreement}
{table}"""

LIMITS = """\
## How much there is to gain

TTFT is never shorter than computing the last piece, behind a context that is there already, on a machine that has nothing
else to do. `{default}` stands beside that on the whole pool. And no more can lie there than the pool holds: context that was
found and is not final yet comes to so many pools of two H200 in the mean.

{table}"""

PRESSURE = """\
## Memory pressure

Pools are shares of two H200's KV cache (1,568,000 tokens): {pools}. Beside the front ends above: `native` is the streaming
input of stock vLLM 0.32 (an update is an abort and a new request); `+hints` has been told how many chunks are still to
come; the others are this library's policies (docs/policies.md), with **{default}** as the default. `P50 / ...` is a front
end's TTFT in multiples of the default policy's, seed by seed: the geometric mean, and its 95% confidence interval.

What was aimed for at delay x10 before the runs, and what came out:

{aims}
The other policies of this library, P50 and P99 of each, over all seeds. An interval that has 1 in it decides nothing:

{standing}
{cells}"""

THROUGHPUT = """\
## Throughput

Seconds from the first arrival until all was answered. The aim: within 1% of NS.

{table}"""

MECHANISM = """\
## Preemption by recompute and by swap

Speed-up of TTFT over NS at P50/P95/P99, at the whole pool of two H200. With host memory (256 GiB; each GPU copies 50 GB/s each
way) this library's cost model decides for each victim (`+auto`), or all are copied (`+swap`). At smaller pools the tables
above have the same.

{table}"""

DIFFERENCES = """\
## What differs from the paper, and why

* **Small TTFTs are shorter here.** At 0.5 crawls a second nothing queues, and streaming leaves the last page to compute. The
  paper's median of 30 ms must have some 15 ms in it that are not modelled, such as front end, tokenisation and transfer;
  speed-ups at P50 come out higher by as much.
* **vLLM-S is another one.** The paper does not say how its default scheduler, of vLLM 0.8.1, treats prompts that grow; here
  it is vLLM 0.32's (docs/simulation.md).
* **Memory is short at other pools.** Crawls at delay x10 hold two thirds of the whole pool in the mean, and 96% at most:
  nothing is evicted. The paper saw evictions there. Searches at delay x30 fill it; at delay 1 they hold an eighth at most,
  so that no pool of this page is short for them.
* **ANNS gains less at 2 QPS.** Where the paper's longest prompts come in its trace is not known; here they are drawn
  independently of how long retrieval takes, so that many of them are not computed by the time the final context comes. At
  delay x30 the paper's NS is nearly twice as slow at P50 as at delay 1, ours is not (see above): beside its NS at delay 1,
  the 2.7 times of its fcfs would be 1.4.
* **Policies are this library's.** They have the paper's names and order; the planner beneath them is not the paper's: it
  plans with the blocks that idle requests hold, evicts idle ones first and no more than is needed.
* **One P99 rests on few requests**: 20 of 2,000 in a seed. The intervals over seeds say how much of a difference is chance.
"""

GPU = """\
## On a GPU

`benchmarks/gpu.py` measures the same workloads on the real engine, with rates and pool scaled to one GPU.

{content}"""
