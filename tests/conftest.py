"""Fixtures shared by all packages' tests."""

import gzip
import json
import logging
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.boxes import boxes_to_stored
from pipeline.datasets.dataset import open_dataset
from pipeline.toy.generate import write_toy
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import load_vocabulary

# Waiting threads of torch's OpenMP spin by default, which costs most of the time where other
# programs want the cores too. Read when torch is loaded, here and in the tests' subprocesses.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Caches and runs are compared bit by bit, which holds for equal numbers of threads.
for library in ("OMP", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
# Shells have their background jobs ignore Ctrl-C, and programs pass that on to those they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Below these stand the lines that emulated GPUs name.
PACKAGES = ("/pipeline/", "/evaluation/", "/teacher_cache/", "/student/")
DATA = Path(__file__).parent / "data"
EMULATED = os.environ.get("EOID_EMULATED_GPU") == "1"
PERSON, BALL = [0.0, 0.0, 9.0, 19.0], [20.0, 0.0, 29.0, 9.0]
GOLDEN = Path(os.environ.get("EOID_GOLDEN_DIR") or DATA / "golden")

# The slowest files come first, so that no process waits for one of them at the end.
SLOWEST = (
    "tests/test_benchmarks.py",
    "tests/student/inference/test_export.py",
    "tests/teacher_cache/cluster/test_slurm.py",
    "tests/test_zero_shot.py",
    "tests/teacher_cache/cluster/test_status.py",
    "tests/test_photographs.py",
    "tests/student/test_slurm.py",
)


@pytest.fixture
def messages():
    """What the project's logger reports at level INFO and above, as a list that grows."""
    found, logger = [], logging.getLogger("eoid")
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(before)


def pytest_collection_modifyitems(items):
    order = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


def pytest_generate_tests(metafunc):
    """`@pytest.mark.golden("kind_*.npz")` runs a test with `golden_file`, once for every file."""
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is not None:
        (kind,) = marker.args
        found = [*GOLDEN.glob(kind), *GOLDEN.glob(f"{kind}.gz")]
        names = sorted({file.name.removesuffix(".gz") for file in found}) or [kind]
        metafunc.parametrize("golden_file", names, indirect=True)


def unpack(source, folder):
    """Copies the files of `source` to `folder`, those that end in .gz or .xz uncompressed."""
    for file in filter(Path.is_file, source.iterdir()):
        if file.suffix in (".gz", ".xz"):
            module = {".gz": gzip, ".xz": lzma}[file.suffix]
            (folder / file.stem).write_bytes(module.decompress(file.read_bytes()))
        else:
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory):
    """The golden files, uncompressed, under the names that the published tools use."""
    return unpack(GOLDEN, tmp_path_factory.mktemp("golden"))


@pytest.fixture
def golden_file(request):
    """Path of one golden file, beside those that belong to it; fails without one of the kind."""
    if any(letter in request.param for letter in "*?["):
        pytest.fail(f"{GOLDEN} (EOID_GOLDEN_DIR) holds no {request.param}")
    return request.getfixturevalue("golden_folder") / request.param


@pytest.fixture(scope="session")
def hico_det_files(tmp_path_factory):
    """Folder of HICO-DET's real test annotations: instances_test2015.json, test_hico.json."""
    return unpack(DATA / "hico_det", tmp_path_factory.mktemp("hico_det"))


@pytest.fixture(scope="session")
def vcoco_files(tmp_path_factory):
    """Folder of V-COCO's real training and validation actions with their lists of image ids."""
    return unpack(DATA / "vcoco", tmp_path_factory.mktemp("vcoco"))


def pytest_collection_finish(session):
    """Emulated GPUs are prepared before the first test, see `emulated_cuda.prepare_torch`."""
    names = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if "emulate_cuda" in names or ("gpu" in names and EMULATED):
        import emulated_cuda

        if emulated_cuda.why_not() is None:
            emulated_cuda.prepare_torch()


@pytest.fixture(scope="module")
def traced():
    """Traces the detector of a file once for both formats of exports; tracing takes long."""
    from student.inference import export

    real, known = export.trace_detector, {}

    def once(detector):
        if detector.file not in known:
            known[detector.file] = real(detector)
        return known[detector.file]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace_detector", once)
        yield


@pytest.fixture
def emulate_cuda():
    """`with emulate_cuda(devices=1) as gpu:` emulates a GPU; `gpu` counts kernels and host waits.

    Skips where that is not possible. See `emulated_cuda` for what is emulated.
    """
    import emulated_cuda

    if reason := emulated_cuda.why_not():
        pytest.skip(reason)
    return partial(emulated_cuda.emulated_cuda, PACKAGES)


@pytest.fixture
def emulated_gpu(emulate_cuda):
    """A GPU is there, emulated, for the test's length."""
    with emulate_cuda() as gpu:
        yield gpu


@pytest.fixture
def gpu(request):
    """The first GPU. Skips without one; `EOID_EMULATED_GPU=1` takes an emulated one, on which the
    tests of GPUs are tried out themselves."""
    import torch

    if EMULATED:
        request.getfixturevalue("emulated_gpu")
    elif not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU, found none")
    return torch.device("cuda", 0)


@pytest.fixture
def two_gpus(gpu):
    """Skips where there are fewer than two GPUs."""
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, found {torch.cuda.device_count()}")


SLURM = Path(__file__).parent / "slurm.sh"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
PATIENCE = 240


@dataclass(frozen=True)
class Slurm:
    """A cluster that runs; its commands find it by the environment, and jobs this project too."""

    logs: Path

    def __call__(self, *words):
        """What one of SLURM's commands prints."""
        return subprocess.run(
            list(map(str, words)), check=True, capture_output=True, text=True, cwd=self.logs
        ).stdout.strip()

    def submit(self, *words):
        """Number of a new job."""
        return self("sbatch", "--parsable", *words)

    def state(self, job):
        """State of a job; of several, as an array's number names them, in the jobs' order."""
        output = self("scontrol", "--oneliner", "show", "job", job)
        states = [line.split("JobState=")[1].split()[0] for line in output.splitlines()]
        return states[0] if len(states) == 1 else states

    def log(self, name):
        """What a job has printed so far."""
        path = self.logs / name
        return path.read_text() if path.exists() else ""

    def wait(self, condition, describe=lambda: ""):
        """Waits until something holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, describe()
            time.sleep(0.05)

    def end(self, job, describe=lambda: ""):
        """Waits for a job, and gives its state."""
        going = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
        self.wait(lambda: self.state(job) not in going, describe)
        return self.state(job)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A real SLURM of two nodes on this machine."""
    paths = os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))
    missing = [name for name in PROGRAMS if shutil.which(name, path=paths) is None]
    if missing:
        pytest.skip(f"no SLURM here: {', '.join(missing)} not found (slurm-wlm, munge)")
    folder = tmp_path_factory.mktemp("slurm")
    logs = tmp_path_factory.mktemp("jobs")
    started = subprocess.run(["bash", SLURM, "start", folder], capture_output=True, text=True)
    if started.returncode:
        subprocess.run(["bash", SLURM, "stop", folder], check=True)
        pytest.skip(f"SLURM does not start here: {' '.join(started.stderr.split())[-300:]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        yield Slurm(logs)
        subprocess.run(["bash", SLURM, "stop", folder], check=True)


@pytest.fixture(scope="session")
def write_vcoco():
    """`write_vcoco(folder, [{"boxes": [(category, [x, y, w, h]), ...], "does": {...}}, ...])`
    writes V-COCO's official files below `folder/data` and returns the actions file.

    `does` has the objects of an action's roles (a box's number or None) by (person, action);
    `unlabelled` has the indices of unlabelled people, `size` the image's width and height, and
    `name` its file name.
    Image i, counted from `start`, gets the id 10 * (i + 1), its box j the id 100 * (i + 1) + j + 1.
    A second part joins the first one's COCO file.
    """

    def write(folder, images, part="test", start=0):
        roles = {entry["action"]: entry["roles"] for entry in load_vocabulary("vcoco").roles}
        coco_file = folder / "data" / "instances_vcoco_all_2014.json"
        coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
        if coco_file.exists():
            coco = json.loads(coco_file.read_text())
        people, does = [], {}
        for index, image in enumerate(images, start):
            number, (width, height) = 10 * (index + 1), image.get("size", (200, 150))
            name = image.get("name", f"COCO_val2014_{number:012}.jpg")
            coco["images"].append(
                {"id": number, "file_name": name, "width": width, "height": height}
            )
            for row, (category, box, *more) in enumerate(image["boxes"]):
                entry = {"id": 100 * (index + 1) + row + 1, "image_id": number, "bbox": box}
                entry |= {"category_id": category, "iscrowd": 0, "area": box[2] * box[3]}
                coco["annotations"].append(entry | dict(*more))
                if category == 1 and row not in image.get("unlabelled", ()):
                    people.append((number, entry["id"]))
            for (row, action), objects in image.get("does", {}).items():
                base = 100 * (index + 1) + 1
                ids = [0 if one is None else base + one for one in objects]
                does[base + row, action] = ids
        entries = [
            {
                "action_name": action,
                "role_name": ["agent", *names],
                "image_id": [number for number, _ in people],
                "ann_id": [person for _, person in people],
                "label": [int((person, action) in does) for _, person in people],
                "role_object_id": [person for _, person in people]
                + [
                    does.get((person, action), [0] * len(names))[place]
                    for place in range(len(names))
                    for _, person in people
                ],
            }
            for action, names in roles.items()
        ]
        actions = folder / "data" / "vcoco" / f"vcoco_{part}.json"
        ids = folder / "data" / "splits" / f"vcoco_{part}.ids"
        for path in (actions, ids):
            path.parent.mkdir(parents=True, exist_ok=True)
        actions.write_text(json.dumps(entries))
        ids.write_text("".join(f"{number}\n" for number in dict.fromkeys(n for n, _ in people)))
        coco_file.write_text(json.dumps(coco))
        return actions

    return write


# How a picture is stored that an EXIF orientation turns upright.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
FILES = {"train": "trainval_hico.json", "test": "test_hico.json"}


@pytest.fixture(scope="session")
def turned_twins():
    """`turned_twins(root, folder, part)` gives two copies of a toy dataset: with upright pictures
    of 160 x 128 pixels in the part, and with the same pictures stored turned, in all of EXIF's
    ways, and annotated in stored pixels, as `dataset.toml` states."""

    def make(root, folder, part):
        roots = [shutil.copytree(root, folder / name) for name in ("upright", "stored")]
        (roots[1] / "dataset.toml").write_text(
            'orientation = "stored"\n' + (roots[0] / "dataset.toml").read_text()
        )
        for root, is_stored in zip(roots, (False, True), strict=True):
            file = root / "annotations" / FILES[part]
            entries = json.loads(file.read_text())
            for number, entry in enumerate(entries):
                orientation = 1 + (2 + number) % 8 if is_stored else 1
                path = root / f"images/{part}2015" / entry["file_name"]
                picture = Image.new("RGB", (160, 128), (128, 128, 128))
                with Image.open(path) as image:
                    picture.paste(image)
                # Numbers that floats hold, whichever edge they are counted from.
                boxes = np.rint([row["bbox"] for row in entry["annotations"]])
                exif = Image.Exif()
                if orientation != 1:
                    picture = picture.transpose(STORED[orientation])
                    boxes = boxes_to_stored(boxes, orientation, (160, 128))
                    exif[0x0112] = orientation
                picture.save(path, "PNG", exif=exif)
                entry["width"], entry["height"] = picture.size
                for row, box in zip(entry["annotations"], boxes.tolist(), strict=True):
                    row["bbox"] = box
            file.write_text(json.dumps(entries))
        return roots

    return make


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny") / "toy"
    write_toy(root, train=16, test=6, seed=3, workers=1)
    return root


@pytest.fixture(scope="session")
def dataset(dataset_root):
    return open_dataset(dataset_root)


@pytest.fixture(scope="session")
def annotations(dataset):
    """The training part's `AnnotationFile`."""
    return dataset.load("train")


@pytest.fixture(scope="session")
def toy():
    return load_vocabulary("toy")


@pytest.fixture(scope="session")
def annotate(toy):
    """`annotate("a.jpg", ("kick", "ball"), ...)`: every pair a person and an object of its own,
    stacked 100 pixels apart."""

    def build(image_id, *names):
        return Annotation(image_id, *_content(toy, names, [0.0] * len(names)))

    return build


@pytest.fixture(scope="session")
def detect(toy):
    """`detect("a.jpg", ("kick", "ball", 0.9), ...)`, the same places as `annotate`; a fourth entry
    shifts a detection's two boxes to the right by so many pixels, a fifth names its row."""

    def build(image_id, *found):
        names = [entry[:2] for entry in found]
        shifts = [entry[3] if len(entry) > 3 else 0.0 for entry in found]
        rows = [entry[4] if len(entry) > 4 else row for row, entry in enumerate(found)]
        scores = np.array([entry[2] for entry in found], dtype=np.float32)
        return Detections(image_id, *_content(toy, names, shifts, rows), scores)

    return build


def _content(vocabulary, names, shifts, rows=None):
    boxes, labels, hois = [], [], []
    for index, ((verb, label), shift) in enumerate(zip(names, shifts, strict=True)):
        row = index if rows is None else rows[index]
        for box in (PERSON, BALL):
            boxes.append(np.array(box) + np.array([shift, 100 * row] * 2))
        labels += [vocabulary.person, vocabulary.objects.index(label)]
        hois.append((2 * index, 2 * index + 1, vocabulary.verbs.index(verb)))
    return (
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        np.array(hois, dtype=np.int64).reshape(-1, 3),
    )
