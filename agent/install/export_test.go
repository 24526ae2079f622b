package install

// CrashAt has a crash before a step of a join.
func (c *JoinConfig) CrashAt(crash func(step string) error) { c.crash = crash }

// CrashAt has a crash before a step of Take.
func (i *Identity) CrashAt(crash func(step string) error) { i.crash = crash }
