"""Speed measured against eager PyTorch, torch.compile and the memory floor.

python -m benchmarks.compare        candidates interleaved in one process, written to a results file
python -m benchmarks.models         training steps of whole models, as they are and converted
python -m benchmarks.report FILE    the markdown table and the plot of a results file
python -m benchmarks.gpu OUT_DIR    everything a GPU machine should say, as one PASS/FAIL table
python -m benchmarks.ledger         what is proven on a GPU (docs/gpu.md), held against git
pytest benchmarks                   the pytest-benchmark suites, for one op at a time
"""
