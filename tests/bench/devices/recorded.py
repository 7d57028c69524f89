"""Trees of files as boards show them, with the kernel's relative links and its trailing newlines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

NVPMODEL_ORIN_NANO = """\
# Orin Nano, JetPack 6.2
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online

< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
CPU_ONLINE CORE_0 1

< PM_CONFIG DEFAULT=1 >
"""


def write(root: Path, files: Mapping[str, str | int]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n", encoding="utf-8")


def link(root: Path, name: str, target: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(root / target, path.parent))


def ina3221(
    root: Path, address: str, number: int, rails: Mapping[int, tuple[str, int, int]], *, shunt: int = 5000
) -> Path:
    """A monitor on i2c bus 1, seen by class and by driver. ``rails``: channel → label, millivolts, milliamperes."""
    home = f"sys/devices/platform/bus@0/c240000.i2c/i2c-1/1-00{address}"
    chip = f"{home}/hwmon/hwmon{number}"
    write(root, {f"{chip}/name": "ina3221", f"{home}/name": "ina3221", f"{chip}/update_interval": 8})
    write(root, {f"{chip}/samples": 1, f"{chip}/in7_label": "sum of shunt voltages", f"{chip}/in7_input": 640})
    for channel, (label, millivolts, milliamperes) in rails.items():
        write(
            root,
            {
                f"{chip}/in{channel}_label": label,
                f"{chip}/in{channel}_enable": 0 if label == "NC" else 1,
                f"{chip}/in{channel + 3}_input": 200,
                f"{chip}/shunt{channel}_resistor": shunt,
                f"{chip}/curr{channel}_crit": 32760,
            },
        )
        if label == "NC":  # reading a channel that is off fails; a folder in its place fails as well
            (root / chip / f"in{channel}_input").mkdir()
        else:
            write(root, {f"{chip}/in{channel}_input": millivolts, f"{chip}/curr{channel}_input": milliamperes})
    link(root, f"sys/class/hwmon/hwmon{number}", chip)
    link(root, f"sys/bus/i2c/drivers/ina3221/1-00{address}", home)
    return root / chip


def zones(root: Path, temperatures: Mapping[str, str | int]) -> None:
    for i, (name, value) in enumerate(temperatures.items()):
        write(root, {f"sys/class/thermal/thermal_zone{i}/type": name, f"sys/class/thermal/thermal_zone{i}/temp": value})


def policies(root: Path, khz: Mapping[int, int], governor: str) -> None:
    for number, value in khz.items():
        folder = f"sys/devices/system/cpu/cpufreq/policy{number}"
        write(root, {f"{folder}/scaling_cur_freq": value, f"{folder}/scaling_governor": governor})


def devfreq(root: Path, hz: Mapping[str, int], governor: str) -> None:
    for name, value in hz.items():
        write(root, {f"sys/class/devfreq/{name}/cur_freq": value, f"sys/class/devfreq/{name}/governor": governor})


def overcurrent(root: Path, number: int, counts: tuple[int, int, int]) -> None:
    folder = f"sys/class/hwmon/hwmon{number}"
    write(root, {f"{folder}/name": "soctherm_oc"})
    for i, value in enumerate(counts, 1):
        write(root, {f"{folder}/oc{i}_event_cnt": value, f"{folder}/oc{i}_throt_en": 1})


def orin_nano(root: Path) -> Path:
    """Orin Nano 8 GB, JetPack 6: VDD_IN is the module's total."""
    ina3221(root, "40", 1, {1: ("VDD_IN", 5056, 1864), 2: ("VDD_CPU_GPU_CV", 5056, 536), 3: ("VDD_SOC", 5056, 448)})
    write(root, {"sys/class/hwmon/hwmon0/name": "pwmfan", "sys/class/hwmon/hwmon0/pwm1": 90})
    overcurrent(root, 2, (1, 0, 2))
    policies(root, {0: 1510400, 4: 729600}, "schedutil")
    devfreq(root, {"17000000.gpu": 624750000, "15340000.vic": 115200000}, "nvhost_podgov")
    write(root, {"sys/kernel/debug/bpmp/debug/clk/emc/rate": 2133000000})
    zones(root, {"cpu-thermal": 51250, "gpu-thermal": 50500, "cv0-thermal": -256000, "tj-thermal": 51250})
    write(root, {"etc/nvpmodel.conf": NVPMODEL_ORIN_NANO, "var/lib/nvpmodel/status": "pmode:0002"})
    return root


def agx_orin(root: Path) -> Path:
    """AGX Orin, JetPack 6: two monitors, unconnected channels, no rail that is the total."""
    ina3221(
        root, "40", 3, {1: ("VDD_GPU_SOC", 19888, 304), 2: ("VDD_CPU_CV", 19888, 40), 3: ("VIN_SYS_5V0", 4968, 888)},
        shunt=2000,
    )  # fmt: skip
    ina3221(root, "41", 4, {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 4968, 136), 3: ("NC", 0, 0)}, shunt=2000)
    policies(root, {0: 2201600, 4: 2201600, 8: 729600}, "performance")
    devfreq(root, {"17000000.gpu": 1300500000}, "nvhost_podgov")
    zones(root, {"CPU-therm": 47968, "GPU-therm": 43437})
    write(root, {"etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< PM_CONFIG DEFAULT=0 >"})
    return root


def thor(root: Path) -> Path:
    """AGX Thor, JetPack 7: an INA238 on the board's input; the GPU is gated, so its zone cannot be read."""
    ina3221(
        root, "40", 5, {1: ("VDD_GPU", 19800, 0), 2: ("VDD_CPU_SOC_MSS", 19800, 328), 3: ("VIN_SYS_5V0", 5000, 1304)}
    )
    home = "sys/devices/platform/bus@0/810c600000.i2c/i2c-2/2-0044"
    chip = f"{home}/hwmon/hwmon6"
    write(
        root,
        {
            f"{chip}/name": "ina238",
            f"{chip}/label": "VIN",
            f"{chip}/in0_input": 2,
            f"{chip}/in1_input": 19950,
            f"{chip}/curr1_input": 1150,
            f"{chip}/power1_input": 22943000,
            f"{chip}/shunt_resistor": 1000,
        },
    )
    link(root, "sys/class/hwmon/hwmon6", chip)
    link(root, "sys/bus/i2c/drivers/ina238/2-0044", home)
    overcurrent(root, 7, (0, 0, 179))
    policies(root, {0: 2601000}, "schedutil")
    devfreq(root, {"gpu-gpc-0": 1575000000, "gpu-nvd-0": 1692000000, "bwmgr": 4266000000}, "nvhost_podgov")
    zones(root, {"tj-thermal": 55100, "cpu-thermal": 53700, "gpu-thermal": 0})
    gated = root / "sys/class/thermal/thermal_zone2/temp"
    gated.unlink()
    gated.mkdir()
    for i, (name, value) in enumerate({"gpu-throttle-alert": 1, "cpu-throttle-alert": 0, "pwm-fan": 3}.items()):
        folder = f"sys/class/thermal/cooling_device{i}"
        write(root, {f"{folder}/type": name, f"{folder}/cur_state": value})
    write(root, {"etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >"})
    write(root, {"var/lib/nvpmodel/status": "pmode:0001"})
    return root


def desktop(root: Path, energy_uj: int | None = 262_143_000_000) -> Path:
    """A PC: RAPL, which may be closed to users, and the processor's own sensors."""
    home = "sys/devices/virtual/powercap/intel-rapl"
    for zone, name in {"intel-rapl:0": "package-0", "intel-rapl:0/intel-rapl:0:0": "core"}.items():
        folder = f"{home}/{zone}"
        write(root, {f"{folder}/name": name, f"{folder}/max_energy_range_uj": 262_143_328_850})
        if energy_uj is None:
            (root / folder / "energy_uj").mkdir(parents=True)
        else:
            write(root, {f"{folder}/energy_uj": energy_uj})
        link(root, f"sys/class/powercap/{Path(zone).name}", folder)
    write(root, {"sys/class/hwmon/hwmon0/name": "coretemp", "sys/class/hwmon/hwmon0/temp1_input": 41000})
    for core in (0, 1):
        folder = f"sys/devices/system/cpu/cpu{core}/thermal_throttle"
        write(root, {f"{folder}/core_throttle_count": core, f"{folder}/package_throttle_count": 3})
    policies(root, {0: 3400000, 1: 800000, 10: 800000}, "powersave")
    return root
