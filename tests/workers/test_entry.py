import subprocess
import sys


def test_the_controller_imports_little() -> None:
    code = (
        "import sys, lungseg_ray.workers.entry; "
        "print({'timm', 'segmentation_models_pytorch', 'albumentations', 'pydicom', 'matplotlib'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
