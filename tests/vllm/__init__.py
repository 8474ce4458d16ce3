"""Tests of the vLLM plugin. All but `test_plan.py` need vLLM: `make test-vllm`."""
