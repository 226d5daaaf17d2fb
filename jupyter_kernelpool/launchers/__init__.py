"""How a warm kernel comes to be. To add a way: one file with a subclass of `base.Launcher`, a dotted path in
`KernelPool.launchers`, and `testing.launcher_contract` to prove it."""
