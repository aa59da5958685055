"""The machine that figures were taken on."""
import datetime
import os
import pathlib
import platform


def machine():
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "unknown")
    flags = [f for f in ("avx2", "avx512bw", "avx512_bf16", "amx_bf16") if f" {f} " in cpuinfo.replace("\n", " ")]
    return {"cpu": model, "cores": os.cpu_count(), "flags": flags, "kernel": platform.release(),
            "date": datetime.date.today().isoformat(), "max_isa": os.environ.get("AMXTRAIN_MAX_ISA", "")}
