// Package agent makes a host what its document says and keeps it so. Run is the only place that wires an agent.
//
//	link ──document──▶ ledger ──accepted──▶ engine ──▶ kinds ──▶ libvirt, dnsmasq, iptables, mounts, files
//	  ▲                                       │
//	  └───────────── statuses, facts ◀────────┘
//
// Who the host is, and how it comes to be that, is agent/install's; how a Linux that is there gets an agent, and gets rid of it (Leaver), is
// agent/linux's; how a bare machine gets a system with one is agent/metal's, which is a program of its own, since an initramfs has no room
// for an agent.
//
// The host's own network - names of interfaces, bonds, addresses - is no document's: an operator changes it at the machine by agent/network,
// and the agent's part is to say that its controller still answers. The screen of a host, agent/console, is a program beside the agent, which reads
// what that leaves on the disk.
//
// The agent itself is an item like others (agent/update): the binary that a supervisor starts is the launcher of the release that is to run.
//
// What a host was last told is in its ledger, so that an agent needs nobody to do its work: it acts on the ledger as soon as it
// starts, before and without a connection. Ending an agent ends nothing else: guests, DHCP servers, rules and mounts
// stay, and the next agent finds them.
//
// What drift policy holds must survive an agent: what was Ready or is held is kept beside the ledger (ledger.Marks), for kinds that are
// not healed only. Otherwise a foreign change would look like work that was never done to the next agent, which would do it.
//
// Machine is all that an agent touches of a host beside its own directory; agent/sim/fleet gives it models of whole hosts.
package agent
