"""`plasmavmc vm`: microVMs."""

from __future__ import annotations

from plasmavmc.cli.lazy import LazyGroup

vm = LazyGroup(
    {
        "run": ("plasmavmc.cli.vm.run:run", "Run a command in a new VM; pulls the image where it is missing."),
        "create": ("plasmavmc.cli.vm.create:create", "Make a VM without starting it."),
        "start": ("plasmavmc.cli.vm.life:start", "Start VMs."),
        "stop": ("plasmavmc.cli.vm.life:stop", "Stop VMs gracefully."),
        "suspend": ("plasmavmc.cli.vm.life:suspend", "Put running VMs on disk, memory and all."),
        "restrict": ("plasmavmc.cli.vm.life:restrict", "Change what VMs may open connections to."),
        "screen": ("plasmavmc.cli.vm.life:screen", "Change what may be opened to VMs by those of their network."),
        "resume": ("plasmavmc.cli.vm.life:resume", "Wake suspended VMs."),
        "fork": ("plasmavmc.cli.vm.life:fork", "Copy a running VM."),
        "rm": ("plasmavmc.cli.vm.life:rm", "Remove VMs with their disks."),
        "ls": ("plasmavmc.cli.vm.look:ls", "List VMs."),
        "inspect": ("plasmavmc.cli.vm.look:inspect", "Show VMs in full."),
        "logs": ("plasmavmc.cli.vm.look:logs", "Show what a VM wrote; -f follows."),
        "exec": ("plasmavmc.cli.vm.enter:exec_", "Run a command in a running VM."),
        "attach": ("plasmavmc.cli.vm.enter:attach", "Join a VM's own stdin and output."),
        "cp": ("plasmavmc.cli.vm.cp:cp", "Copy files between this host and a running VM."),
    },
    hints={"ps": "ls", "list": "ls", "delete": "rm", "show": "inspect", "kill": "stop -t 0", "restart": "start"},
    name="vm",
    help="Run, start, stop, look at and enter microVMs. A VM is named by its id, its name, or the beginning of its id.",
)
