"""Writes tests/fake_sys/{jp5,jp62,jp72}: the files of an Orin Nano 8GB that telemetry and doctor read, as three JetPacks have them.

    python tests/fake_sys/make.py

The trees are under version control, so that `quamba-edge top --once --json --root tests/fake_sys/jp62` works from a fresh clone; a
test compares them with this script.  Labels, units, places and failures are those of real boards; the readings are only plausible,
and so are build numbers and dates.  A folder cannot hold a file that answers EAGAIN, as the cv zones do: there the file is absent, and
tests put the error in through the reader (tests/telemetry/test_tegra.py).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREES = ("jp5", "jp62", "jp72")

# Per tree: L4T's release line, kernel, where the INA3221 got its number, GPU folder and clock (MHz), node name, mode, model.
RELEASE = {
    "jp5": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 19:57:35 UTC 2023",
    "jp62": "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64, DATE: Thu Sep 18 22:54:44 UTC 2025",
    "jp72": "# R39 (release), REVISION: 2.0, GCID: 45750123, BOARD: generic, EABI: aarch64, DATE: Mon Jun  1 00:00:00 UTC 2026\n"
    "# KERNEL_VARIANT: oot",
}
HWMON = {
    "jp5": {"ina3221": 4, "soctherm_oc": 1, "pwmfan": 2, "pwm_tach": 0},
    "jp62": {"ina3221": 1, "soctherm_oc": 3, "pwmfan": 0, "pwm_tach": 2},
    "jp72": {"ina3221": 2, "soctherm_oc": 0, "pwmfan": 1, "pwm_tach": 3},
}
RAILS = {  # label: (mV, mA)
    "jp5": {"VDD_IN": (5016, 1136), "VDD_CPU_GPU_CV": (5016, 216), "VDD_SOC": (5016, 304)},
    "jp62": {"VDD_IN": (5024, 2400), "VDD_CPU_GPU_CV": (5008, 912), "VDD_SOC": (5008, 560)},
    "jp72": {"VDD_IN": (5016, 1504), "VDD_CPU_GPU_CV": (5016, 248), "VDD_SOC": (5016, 296)},
}
GPU = {  # (where its load is, devfreq name, per mille, MHz now, MHz at most)
    "jp5": ("sys/devices/17000000.ga10b/load", "17000000.ga10b", 0, 306, 624),
    "jp62": ("sys/devices/platform/bus@0/17000000.gpu/load", "17000000.gpu", 873, 918, 918),
    "jp72": ("sys/devices/platform/bus@0/17000000.gpu/load", "17000000.gpu", 125, 306, 612),
}
MODES = {  # names in the order of their numbers, default, current
    "jp5": (("15W", "7W"), 0, 0),
    "jp62": (("15W", "25W", "MAXN_SUPER", "7W"), 1, 1),
    "jp72": (("15W", "25W", "MAXN_SUPER", "7W"), 1, 0),
}
CLOCKS = {"15W": (1497600, 612, 2133), "25W": (1344000, 918, 3199), "MAXN_SUPER": (1728000, 1020, 3199)}
TEMPS = {"cpu": 48562, "gpu": 49625, "soc0": 48625, "soc1": 47937, "soc2": 46593, "tj": 49312}
MEMORY = {  # kB: total, free, available, cached, NvMapMemUsed (not on every kernel)
    "jp5": (7471264, 5511000, 6203000, 912000, None),
    "jp62": (7802880, 3122000, 4015000, 1240000, 2097152),
    "jp72": (7789952, 4933000, 5722000, 1102000, 151040),
}


def tree(name: str) -> dict[str, str]:
    """{path: content} of one board."""
    old = name == "jp5"
    module = "nvidia,p3768-0000+p3767-0005" + ("" if old else "-super")
    files = {
        "etc/nv_tegra_release": RELEASE[name],
        "etc/nvpmodel.conf": conf(name),
        "var/lib/nvpmodel/status": f"pmode:{MODES[name][2]:04d} fmode:quiet",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit"
        + ("" if old else " Super")
        + "\0",
        "proc/device-tree/compatible": f"{module}\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "proc/stat": stat(),
        "proc/meminfo": meminfo(name),
        "proc/swaps": swaps(name),
        "proc/mounts": f"/dev/{'mmcblk1p1' if old else 'nvme0n1p1'} / ext4 rw,relatime 0 0\nproc /proc proc rw 0 0",
        "proc/sys/kernel/osrelease": {"jp5": "5.10.120-tegra", "jp62": "5.15.148-tegra", "jp72": "6.8.12-1021-tegra"}[
            name
        ],
        "sys/kernel/nvpmodel_clk_cap/emc": str((2133 if name != "jp62" else 3199) * 1_000_000),
    }
    libcuda = "usr/lib/aarch64-linux-gnu/" + ("tegra" if old else "nvidia") + "/libcuda.so.1"
    files[libcuda] = "a placeholder: only its place is looked at"
    hwmon = {n: f"sys/class/hwmon/hwmon{i}" for n, i in HWMON[name].items()}
    files |= {f"{folder}/name": n for n, folder in hwmon.items()}
    files |= power(hwmon["ina3221"], RAILS[name])
    for i, count in enumerate((0, 0, 37), 1):
        files |= {f"{hwmon['soctherm_oc']}/oc{i}_event_cnt": str(count), f"{hwmon['soctherm_oc']}/oc{i}_throt_en": "1"}
    files |= {f"{hwmon['pwmfan']}/pwm1": "102", f"{hwmon['pwm_tach']}/rpm": "2315"}
    load, folder, permille, now, most = GPU[name]
    clock = f"sys/class/devfreq/{folder}"
    files |= {load: str(permille), f"{clock}/cur_freq": f"{now}000000", f"{clock}/max_freq": f"{most}000000"}
    files |= {f"{clock}/min_freq": "306000000", f"{clock}/governor": "nvhost_podgov"}
    zones = {"cpu": 1, "gpu": 1, "cv0": 0, "cv1": 0, "cv2": 0, "soc0": 1, "soc1": 1, "soc2": 1, "tj": 1}
    for i, (zone, answers) in enumerate(zones.items()):
        files[f"sys/class/thermal/thermal_zone{i}/type"] = f"{zone}-thermal" if not old else f"{zone.upper()}-therm"
        if answers:
            files[f"sys/class/thermal/thermal_zone{i}/temp"] = str(TEMPS[zone])
    for first in (0, 4):
        policy = f"sys/devices/system/cpu/cpufreq/policy{first}"
        most = CLOCKS[MODES[name][0][MODES[name][2]]][0]
        files |= {f"{policy}/scaling_cur_freq": "729600", f"{policy}/scaling_max_freq": str(most)}
        files[f"{policy}/scaling_governor"] = "schedutil"
    return files


def power(folder: str, rails: dict[str, tuple[int, int]]) -> dict[str, str]:
    files = {f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": "120"}
    files |= {f"{folder}/update_interval": "2", f"{folder}/samples": "4"}
    for i, (label, (millivolts, milliamps)) in enumerate(rails.items(), 1):
        files |= {f"{folder}/in{i}_label": label, f"{folder}/in{i}_input": str(millivolts)}
        files |= {f"{folder}/curr{i}_input": str(milliamps), f"{folder}/curr{i}_crit_alarm": "0"}
        files[f"{folder}/curr{i}_crit"] = "4050" if label == "VDD_IN" else "32760"
    return files


def conf(name: str) -> str:
    names, default, _ = MODES[name]
    lines = ["# NVIDIA power models of this board", "< PARAM TYPE=FILE NAME=CPU_ONLINE >"]
    for number, mode in enumerate(names):
        lines += ["", f"< POWER_MODEL ID={number} NAME={mode} >"]
        lines += [f"CPU_ONLINE CORE_{core} {int(mode != '7W' or core < 4)}" for core in range(6)]
        lines += [f"TPC_POWER_GATING TPC_PG_MASK {254 if mode == '7W' else 240}"]
        if mode in CLOCKS:
            cpu, gpu, emc = CLOCKS[mode]
            if name == "jp5":
                cpu, gpu = 1510400, 624
            lines += [f"CPU_A78_{i} MAX_FREQ {cpu}" for i in (0, 1)]
            lines += [f"GPU MAX_FREQ {gpu}000000", f"EMC MAX_FREQ {emc}000000"]
    return "\n".join([*lines, "", f"< PM_CONFIG DEFAULT={default} >"])


def stat() -> str:
    cores = [f"cpu{i} {1000 + 100 * i} 20 500 {90000 - 100 * i} 30 0 12 0 0 0" for i in range(6)]
    return "\n".join(
        ["cpu  7500 120 3000 538500 180 0 72 0 0 0", *cores, "intr 1234 0 0", "ctxt 99", "btime 1758000000"]
    )


def meminfo(name: str) -> str:
    total, free, available, cached, nvmap = MEMORY[name]
    rows = {"MemTotal": total, "MemFree": free, "MemAvailable": available, "Buffers": 41000, "Cached": cached}
    rows |= {"SwapTotal": total // 2, "SwapFree": total // 2 - 140000, "CmaTotal": 262144, "CmaFree": 251000}
    if nvmap is not None:
        rows["NvMapMemUsed"] = nvmap
    return "\n".join([*(f"{k + ':':16}{v:8} kB" for k, v in rows.items()), "HugePages_Total:       0"])


def swaps(name: str) -> str:
    half = MEMORY[name][0] // 12
    rows = [f"/dev/zram{i}                              partition\t{half}\t23000\t5" for i in range(6)]
    return "\n".join(["Filename\t\t\t\tType\t\tSize\tUsed\tPriority", *rows])


def write(into: Path) -> None:
    for name in TREES:
        shutil.rmtree(into / name, ignore_errors=True)
        for path, content in tree(name).items():
            (into / name / path).parent.mkdir(parents=True, exist_ok=True)
            (into / name / path).write_text(content + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
