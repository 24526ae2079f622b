// Package systemd puts a controller on this machine as a unit of systemd, upgrades it, and takes it off. What it writes is desired/layout's.
//
//	Install    what stands in the way? ─▶ programs, unit, user, flags, clock ─▶ start ─▶ healthy ─▶ the first password
//	Upgrade    does the new program take flags and keys? ─▶ stop ─▶ copy of keys and journal ─▶ swap ─▶ start ─▶ healthy, or the old program again
//	Uninstall  stop ─▶ files; data only if told to
//
// Nothing is changed where something stands in the way. An installation or upgrade that was cut off is repeated by the same command. What was
// acknowledged is never lost by an upgrade: the old program takes the journal up as the new one left it, and the copy is for when it can't.
package systemd
