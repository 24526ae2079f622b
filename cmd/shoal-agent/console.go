package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"shoal/agent"
	"shoal/agent/console"
)

// screen is the subcommand that shows the node's console.
func screen(cfg *agent.Config) *cobra.Command {
	var login bool
	cmd := &cobra.Command{
		Use:   "console",
		Short: "Show how this machine is, and do what must work when nothing else does",
		Long: `console is what the first screen (tty1) of an installed host shows: the machine, its network and guests, and a menu for the password,
the network, services, logs, a backup, joining, and switching off. It needs no controller.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := agent.Console(*cfg)
			if err != nil {
				return err
			}
			return console.Run(cmd.Context(), console.Config{Actions: m, Login: login, Version: cfg.Version})
		},
	}
	cmd.Flags().BoolVar(&login, "login", false, "ask for root's password before anything is done; for a screen where nobody has logged in")
	consoleFlags(cfg, cmd)
	return cmd
}

// logs is the subcommand that makes the bundle of logs.
func logs(cfg *agent.Config) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Collect logs, the ledger and the inventory, without secrets, for whoever looks into a problem",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := agent.Console(*cfg)
			if err != nil {
				return err
			}
			name, err := m.Bundle(cmd.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), name)
			return err
		},
	}
	consoleFlags(cfg, cmd)
	return cmd
}

func consoleFlags(cfg *agent.Config, cmd *cobra.Command) {
	cmd.Flags().StringVar(&cfg.Libvirt, "libvirt", "/run/libvirt/libvirt-sock", "socket of libvirtd")
	cmd.Flags().StringVar(&cfg.Archives, "archives", "/var/backups", "directory for logs and backups")
}
