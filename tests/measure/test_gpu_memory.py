"""GPU memory is read from what the tools of NVIDIA's boards print, and from NVML."""

import sys
from types import SimpleNamespace

import pytest

from onnxquant.measure import gpu_memory
from onnxquant.measure.gpu_memory import Nvml, Tegrastats, open_gpu_memory, parse_tegrastats

MB = 1024**2

# A line each as the releases of the boards' system print it: with IRAM and without, with dates, swap and powered-off
# cores, frequencies in brackets.
RECORDED = {
    "Nano, JetPack 4.2": (
        "RAM 731/3965MB (lfb 84x4MB) IRAM 0/252kB(lfb 252kB) CPU [2%@102,0%@102,0%@102,1%@102] EMC_FREQ 4%@204 "
        "GR3D_FREQ 0%@153 APE 25 PLL@25C CPU@27.5C PMIC@100C GPU@29C AO@35C thermal@28.25C POM_5V_IN 877/877 "
        "POM_5V_GPU 0/0 POM_5V_CPU 125/125",
        731,
    ),
    "Nano, JetPack 4.6": (
        "RAM 1924/3964MB (lfb 2x2MB) SWAP 191/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) "
        "CPU [5%@1224,4%@1224,3%@1224,6%@1224] EMC_FREQ 0%@1600 GR3D_FREQ 99%@921 APE 25 PLL@37C CPU@40C PMIC@50C "
        "GPU@40C AO@45C thermal@40C POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406",
        1924,
    ),
    "TX2, JetPack 4": (
        "RAM 2345/7852MB (lfb 1154x4MB) SWAP 0/3926MB (cached 0MB) CPU [1%@345,off,off,1%@345,0%@345,2%@345] "
        "EMC_FREQ 4%@1600 GR3D_FREQ 0%@624 APE 150 PLL@37.5C MCPU@37.5C PMIC@100C Tboard@32C GPU@35C BCPU@37.5C "
        "thermal@36.5C Tdiode@34.25C VDD_SYS_GPU 152/152 VDD_SYS_SOC 687/687",
        2345,
    ),
    "AGX Xavier, JetPack 4": (
        "RAM 4722/31925MB (lfb 5991x4MB) SWAP 0/15962MB (cached 0MB) "
        "CPU [9%@1190,2%@1190,0%@1190,1%@1190,off,off,off,off] EMC_FREQ 0% GR3D_FREQ 12% AO@35.5C GPU@36C Tdiode@38C "
        "PMIC@100C AUX@36C CPU@37C thermal@36.4C Tboard@36C GPU 0/0 CPU 311/311 SOC 932/932 CV 0/0 VDDRQ 155/155 "
        "SYS5V 1531/1531",
        4722,
    ),
    "AGX Orin, JetPack 5": (
        "01-03-2023 16:10:22 RAM 2258/30536MB (lfb 5392x4MB) SWAP 0/15268MB (cached 0MB) "
        "CPU [1%@729,0%@729,0%@729,0%@729,0%@729,0%@729,off,off,off,off,off,off] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] "
        "VIC_FREQ 729 APE 174 CV0@-256C CPU@41.375C Tboard@29C SOC2@39C Tdiode@30.75C SOC0@38.906C GPU@-256C "
        "tj@41.468C VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW",
        2258,
    ),
    "Orin Nano, JetPack 6": (
        "05-05-2025 06:05:39 RAM 2640/7620MB (lfb 9x4MB) SWAP 0/3810MB (cached 0MB) "
        "CPU [1%@729,4%@729,8%@729,4%@729,5%@729,4%@729] GR3D_FREQ 0% cpu@44.156C soc2@43.781C soc0@44.687C "
        "gpu@45.968C tj@45.968C soc1@45.312C VDD_IN 5263mW/5263mW VDD_CPU_GPU_CV 717mW/717mW VDD_SOC 1794mW/1794mW",
        2640,
    ),
}


@pytest.mark.parametrize("board", RECORDED)
def test_the_ram_in_use_is_read_whatever_the_board(board):
    line, used = RECORDED[board]
    assert parse_tegrastats(line + "\n") == [used * MB]


def test_lines_are_read_in_order_and_others_left_out():
    text = "\n".join(["warning: not root", *(line for line, _ in RECORDED.values()), "05-05-2025 06:05:40 RAM 26"])
    assert parse_tegrastats(text) == [used * MB for _, used in RECORDED.values()]
    assert parse_tegrastats("") == []


def tool(path, text):
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return str(path)


def test_tegrastats_gives_the_peak_above_the_first_line_and_is_stopped(tmp_path):
    path = tool(
        tmp_path / "tegrastats", "for used in 500 900 700; do echo RAM $used/3964MB; sleep 0.05; done\nexec sleep 60"
    )
    measured = Tegrastats(path)
    measured.start()
    assert measured.stop(1) == 400 * MB
    assert measured._process.returncode is not None


def test_a_tegrastats_that_says_nothing_gives_no_figure(tmp_path):
    measured = Tegrastats(tool(tmp_path / "tegrastats", "echo permission denied; exit 1"))
    measured.start()
    assert measured.stop(1) is None


def test_tegrastats_goes_before_nvml_and_without_either_there_is_no_figure(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_gpu_memory() is None
    monkeypatch.setitem(sys.modules, "pynvml", driver())
    assert isinstance(open_gpu_memory(), Nvml)
    tool(tmp_path / "tegrastats", "")
    assert isinstance(open_gpu_memory(), Tegrastats)


def test_a_machine_without_a_driver_gives_no_figure(monkeypatch):
    monkeypatch.setattr(gpu_memory.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "pynvml", driver(init=FileNotFoundError("libnvidia-ml.so.1")))
    assert open_gpu_memory() is None


def driver(processes=((), ()), used=(), init=None, lists=True):
    """What stands in for pynvml: two GPUs, their processes as (pid, bytes), and what is used at one question after
    another.
    """
    used = list(used)

    class NVMLError(Exception):
        pass

    def initialise():
        if init:
            raise init

    def running(device):
        if not lists:
            raise NVMLError
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in processes[device]]

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=initialise,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(used=used.pop(0)),
        nvmlDeviceGetComputeRunningProcesses=running,
    )


def test_nvml_counts_a_process_on_all_gpus(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", driver([[(7, 300), (8, 1)], [(7, 30), (7, None)]], [50, 60]))
    measured = Nvml()
    measured.start()
    assert measured.stop(7) == 330


@pytest.mark.parametrize("lists", [True, False])
def test_where_nvml_does_not_know_the_process_it_is_what_the_gpus_hold_more_than_before(monkeypatch, lists):
    monkeypatch.setitem(sys.modules, "pynvml", driver([[(4711, 300)], []], [50, 60, 350, 60], lists=lists))
    measured = Nvml()
    measured.start()
    assert measured.stop(7) == 300
