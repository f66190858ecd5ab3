import subprocess

import pytest

from pipeline.cluster.batch_scripts import BatchScript, write_batch_scripts
from pipeline.utils.errors import InputError

JOB = BatchScript("job.sbatch", "Does it:\n\n  sbatch job.sbatch DATA", "eoid-cache build")
ARRAY = BatchScript("array.sbatch", "Does a part.", "eoid-predict", is_array=True)


def test_scripts_name_their_command():
    lines = JOB.text().splitlines()
    assert lines[:4] == ["#!/bin/bash", "# Does it:", "#", "#   sbatch job.sbatch DATA"]
    assert "#SBATCH --job-name=eoid-cache" in lines
    assert "#SBATCH --output=eoid-cache-%j.log" in lines
    assert 'eoid-cache build "$@" &' in lines
    lines = ARRAY.text().splitlines()
    assert "#SBATCH --output=eoid-predict-%A_%a.log" in lines
    assert 'eoid-predict "$@" --array &' in lines
    assert not [line for line in lines if "@" in line.replace('"$@"', "").replace(":USR1@120", "")]


def test_scripts_are_written_once(tmp_path):
    paths = write_batch_scripts([JOB, ARRAY], tmp_path / "jobs")
    assert [path.name for path in paths] == ["job.sbatch", "array.sbatch"]
    for path in paths:
        subprocess.run(["bash", "-n", path], check=True)
    paths[0].write_text("edited")
    with pytest.raises(InputError, match=r"job\.sbatch: exists"):
        write_batch_scripts([JOB, ARRAY], tmp_path / "jobs")
    write_batch_scripts([JOB, ARRAY], tmp_path / "jobs", overwrite=True)
    assert paths[0].read_text() == JOB.text()


def test_the_exit_code_is_the_commands(tmp_path):
    script = BatchScript("job.sbatch", "Fails.", "bash -c")
    (path,) = write_batch_scripts([script], tmp_path)
    assert subprocess.run(["bash", path, "exit 7"]).returncode == 7
