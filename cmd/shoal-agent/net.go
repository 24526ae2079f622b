package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"shoal/agent"
	"shoal/agent/network"
)

// net is the subcommand that changes the host's own network.
func net(cfg *agent.Config) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "net",
		Short: "Show and change this host's own network: names, bonds, bridges, VLANs, addresses",
		Long: `net works on the units in /etc/systemd/network, which the installer wrote, and needs no controller. What it changes holds at once and
after each start. Networks of guests are the controller's and are not touched.

A change is pending for 60 s, and is rolled back then, also when this terminal is gone, and at the next start after a loss of power. It
stays once it is confirmed from the network: the agent does that when its controller answers after the change; on a host without one, log
in by SSH anew and run shoal-agent net confirm.`,
		Example: `  shoal-agent net show
  shoal-agent net rename 52:54:00:aa:00:01 lan0
  shoal-agent net bond bond0 --nic eno1,eno2 --mode lacp --cut-controller     # with the address that eno1 had
  shoal-agent net add-nic bond0 eno3
  shoal-agent net vlan bond0 120 --address 10.20.0.11/24 --gateway 10.20.0.1
  shoal-agent net bridge br0 --port eno4
  shoal-agent net address eno4 dhcp`,
	}
	cmd.AddCommand(netShow(cfg), netRename(cfg), netBond(cfg), netBridge(cfg), netVLAN(cfg), netAdd(cfg), netRemove(cfg), netAddress(cfg), netDelete(cfg),
		netConfirm(cfg), netRevert(cfg), netGuard(cfg))
	return cmd
}

// changeFlags are those of every change.
type changeFlags struct {
	cut    network.Cut
	check  bool
	noWait bool
}

func (c *changeFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&c.cut.Controller, "cut-controller", false, "the way to the controller may be interrupted")
	f.BoolVar(&c.cut.Guests, "cut-guests", false, "networks of guests may be interrupted")
	f.BoolVar(&c.check, "check", false, "only say what stands against it")
	f.BoolVar(&c.noWait, "no-wait", false, "don't wait until it is confirmed or rolled back")
}

// apply makes a change and tells how it ended.
func (c *changeFlags) apply(cmd *cobra.Command, cfg *agent.Config, change network.Change) error {
	n, err := agent.Network(*cfg)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if c.check {
		if err := n.Check(cmd.Context(), change, c.cut); err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s: nothing stands against it\n", change)
		return err
	}
	p, err := n.Apply(cmd.Context(), change, c.cut)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "%s: done, and rolled back in %d s unless it is confirmed from the network:\n  by the agent, once its controller answers, or\n"+
		"  by shoal-agent net confirm in a new SSH session\n", p.Change, int(n.Left(p).Seconds())); err != nil || c.noWait {
		return err
	}
	last, err := n.Wait(cmd.Context(), p.ID)
	if err != nil {
		return fmt.Errorf("wait for the end, which comes without us, too: %w", err)
	}
	if !last.Confirmed {
		return errors.New(last.Text())
	}
	_, err = fmt.Fprintln(out, last.Text())
	return err
}

// addressFlags are those of what can be given addresses as it is made.
type addressFlags struct{ address, gateway, dns []string }

func (a *addressFlags) add(cmd *cobra.Command, withAddress bool) {
	f := cmd.Flags()
	if withAddress {
		f.StringSliceVar(&a.address, "address", nil, "dhcp, none, or addresses such as 10.0.0.5/24")
	}
	f.StringSliceVar(&a.gateway, "gateway", nil, "of the default route; one for IPv4 and one for IPv6")
	f.StringSliceVar(&a.dns, "dns", nil, "name servers")
}

// given is nil where no flag was.
func (a *addressFlags) given() (*network.Addressing, error) {
	if len(a.address)+len(a.gateway)+len(a.dns) == 0 {
		return nil, nil //nolint:nilnil // nothing was given
	}
	v, err := network.ParseAddressing(a.address, a.gateway, a.dns)
	return &v, err
}

func netRename(cfg *agent.Config) *cobra.Command {
	var flags changeFlags
	cmd := &cobra.Command{
		Use: "rename MAC NAME", Short: "Call the interface with a MAC by another name", Args: cobra.ExactArgs(2),
		Long: "rename finds the interface by its permanent MAC, which net show tells, now and at each start, whatever slot it is in.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.apply(cmd, cfg, network.Rename{MAC: args[0], Name: args[1]})
		},
	}
	flags.add(cmd)
	return cmd
}

func netBond(cfg *agent.Config) *cobra.Command {
	var flags changeFlags
	var address addressFlags
	var nics []string
	var mode string
	cmd := &cobra.Command{
		Use: "bond NAME --nic NIC,NIC", Short: "Make a bond of interfaces", Args: cobra.ExactArgs(1),
		Long: "bond moves the address of the interface that has one to the bond, unless --address says another.",
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := address.given()
			if err != nil {
				return err
			}
			return flags.apply(cmd, cfg, network.MakeBond{Name: args[0], Mode: mode, NICs: nics, Address: a})
		},
	}
	flags.add(cmd)
	address.add(cmd, true)
	cmd.Flags().StringSliceVar(&nics, "nic", nil, "its interfaces")
	cmd.Flags().StringVar(&mode, "mode", "active-backup", "lacp (802.3ad, which the switch must do too) or active-backup")
	return cmd
}

func netBridge(cfg *agent.Config) *cobra.Command {
	var flags changeFlags
	var address addressFlags
	var ports []string
	cmd := &cobra.Command{
		Use: "bridge NAME [--port DEVICE]", Short: "Make a bridge", Args: cobra.ExactArgs(1),
		Long: "bridge moves the address of the port that has one to the bridge, unless --address says another.",
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := address.given()
			if err != nil {
				return err
			}
			return flags.apply(cmd, cfg, network.MakeBridge{Name: args[0], Ports: ports, Address: a})
		},
	}
	flags.add(cmd)
	address.add(cmd, true)
	cmd.Flags().StringSliceVar(&ports, "port", nil, "interfaces, bonds and VLANs that it joins")
	return cmd
}

func netVLAN(cfg *agent.Config) *cobra.Command {
	var flags changeFlags
	var address addressFlags
	var name string
	cmd := &cobra.Command{
		Use: "vlan DEVICE ID", Short: "Make the device for a VLAN on an interface, bond or bridge", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := address.given()
			if err != nil {
				return err
			}
			var id int
			if _, err := fmt.Sscanf(args[1], "%d", &id); err != nil || fmt.Sprint(id) != args[1] {
				return fmt.Errorf("id: %q is not a number", args[1])
			}
			return flags.apply(cmd, cfg, network.MakeVLAN{Device: args[0], ID: id, Name: name, Address: a})
		},
	}
	flags.add(cmd)
	address.add(cmd, true)
	cmd.Flags().StringVar(&name, "name", "", "its name; DEVICE.ID without")
	return cmd
}

func netAdd(cfg *agent.Config) *cobra.Command {
	var flags changeFlags
	cmd := &cobra.Command{
		Use: "add-nic BOND|BRIDGE NIC...", Short: "Put interfaces into a bond or bridge", Args: cobra.MinimumNArgs(2),
		Long: "add-nic takes the address off what it puts into a bond or bridge.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.apply(cmd, cfg, network.AddNIC{To: args[0], NICs: args[1:]})
		},
	}
	flags.add(cmd)
	return cmd
}

func netRemove(cfg *agent.Config) *cobra.Command {
	var flags changeFlags
	cmd := &cobra.Command{
		Use: "remove-nic BOND|BRIDGE NIC...", Short: "Take interfaces out of a bond or bridge", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.apply(cmd, cfg, network.RemoveNIC{From: args[0], NICs: args[1:]})
		},
	}
	flags.add(cmd)
	return cmd
}

func netAddress(cfg *agent.Config) *cobra.Command {
	var flags changeFlags
	var address addressFlags
	cmd := &cobra.Command{
		Use: "address DEVICE dhcp|none|ADDRESS/LENGTH...", Short: "Say what addresses a device has, instead of those that it has", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := network.ParseAddressing(args[1:], address.gateway, address.dns)
			if err != nil {
				return err
			}
			return flags.apply(cmd, cfg, network.SetAddress{Device: args[0], Addressing: a})
		},
	}
	flags.add(cmd)
	address.add(cmd, false)
	return cmd
}

func netDelete(cfg *agent.Config) *cobra.Command {
	var flags changeFlags
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Remove a bond, bridge or VLAN", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return flags.apply(cmd, cfg, network.Delete{Name: args[0]})
		},
	}
	flags.add(cmd)
	return cmd
}

func netConfirm(cfg *agent.Config) *cobra.Command {
	var local bool
	cmd := &cobra.Command{
		Use: "confirm", Short: "Keep the pending change, from a new SSH session", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := agent.Network(*cfg)
			if err != nil {
				return err
			}
			p, err := n.Pending()
			if err != nil {
				return err
			}
			if p == nil {
				return network.ErrNothing
			}
			why := "somebody at the machine"
			if !local {
				if err := network.FromNetwork("/proc", os.Getpid(), p); err != nil {
					return err
				}
				why = "a new SSH session"
			}
			if err := n.Confirm(p.ID, why); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: confirmed\n", p.Change)
			return err
		},
	}
	cmd.Flags().BoolVar(&local, "local", false, "whoever says so stands at the machine and needs no network to undo it")
	return cmd
}

func netRevert(cfg *agent.Config) *cobra.Command {
	return &cobra.Command{
		Use: "revert", Short: "Roll the pending change back at once", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := agent.Network(*cfg)
			if err != nil {
				return err
			}
			return n.RollBack(cmd.Context(), "as the operator said")
		},
	}
}

func netGuard(cfg *agent.Config) *cobra.Command {
	var boot bool
	cmd := &cobra.Command{
		Use: "guard", Short: "Roll the pending change back when its time is over", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := agent.Network(*cfg)
			if err != nil {
				return err
			}
			if boot {
				return n.Recover(cmd.Context())
			}
			return n.Guard(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&boot, "boot", false, "only what is pending from before the machine's start")
	return cmd
}

func netShow(cfg *agent.Config) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "show", Short: "Show devices, addresses, and whether a change is pending", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := agent.Network(*cfg)
			if err != nil {
				return err
			}
			return show(cmd.Context(), n, cmd.OutOrStdout(), format)
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "table", "table or json")
	return cmd
}

func show(ctx context.Context, n *network.Network, w io.Writer, format string) error {
	var all struct {
		Devices []network.Device `json:"devices"`
		Pending *network.Pending `json:"pending,omitempty"`
		Last    *network.Outcome `json:"last,omitempty"`
	}
	var err error
	if all.Devices, err = n.Devices(ctx); err != nil {
		return err
	}
	if all.Pending, err = n.Pending(); err != nil {
		return err
	}
	if all.Last, err = n.Last(); err != nil {
		return err
	}
	switch format {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(all)
	case "table":
	default:
		return fmt.Errorf("output: %q is neither table nor json", format)
	}
	var table strings.Builder
	table.WriteString("DEVICE\tKIND\tLINK\tMAC\tIN\tADDRESSES\tUNIT\tNOTE\n")
	for _, d := range all.Devices {
		table.WriteString(strings.Join([]string{d.Name, d.What(), d.Link(), cmp.Or(d.PermanentMAC, d.MAC), d.Master, addressText(d), d.File, noteText(d)}, "\t") + "\n")
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if _, err := io.WriteString(t, table.String()); err != nil {
		return err
	}
	if err := t.Flush(); err != nil {
		return err
	}
	switch {
	case all.Pending != nil:
		_, err = fmt.Fprintf(w, "\npending: %s: rolled back in %d s unless it is confirmed\n", all.Pending.Change, int(n.Left(all.Pending).Round(time.Second).Seconds()))
	case all.Last != nil:
		_, err = fmt.Fprintf(w, "\nlast change: %s, %s\n", all.Last.At.Local().Format(time.DateTime), all.Last.Text())
	}
	return err
}

func addressText(d network.Device) string {
	var all []string
	for _, a := range d.Addresses {
		all = append(all, a.String())
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

func noteText(d network.Device) string {
	var all []string
	if d.Controller {
		all = append(all, "to the controller")
	}
	if d.Shoal != "" {
		all = append(all, "Shoal: "+d.Shoal)
	}
	return strings.Join(all, "; ")
}
