"""The engine for GPUs compiles and links with NVIDIA's compiler, and says what is missing where there is no GPU.

What its kernels compute cuda_runner_test shows, which emulates a GPU where there is none.
"""

import json
import os
import pathlib
import subprocess
import unittest

SOURCE = pathlib.Path(os.environ["ALMOST_SOURCE_DIR"])
BUILD = pathlib.Path(os.environ["ALMOST_BINARY_DIR"]).parent / "cuda"


class CudaTest(unittest.TestCase):
    def test_builds_with_nothing_but_libtorch_and_nvcc(self):
        subprocess.run(["cmake", "-S", SOURCE, "-B", BUILD, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DALMOST_CUDA=ON",
                        "-DALMOST_TORCH_ONLY=ON", "--log-level=WARNING"], check=True)
        subprocess.run(["ninja", "-C", BUILD, "engine_bench", "cuda_runner_test"], check=True)
        request = {"prompts": [[1, 2, 3]], "max_new_tokens": 3, "device": "cuda:99", "repeats": 1}
        run = subprocess.run([BUILD / "bin/engine_bench", "generate", SOURCE / "common/world/models/S", "1"],
                             input=json.dumps(request), capture_output=True, text=True)
        self.assertEqual(run.returncode, 1)
        self.assertIn("FAILED_PRECONDITION: cuda: device 99", run.stderr)


if __name__ == "__main__":
    unittest.main()
