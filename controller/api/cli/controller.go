package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"shoal/controller"
	"shoal/controller/api"
	"shoal/controller/resource"
	"shoal/controller/systemd"
	"shoal/desired/layout"
)

// controllerCommand is about the controller of this machine. It needs root and no credentials.
func (a *App) controllerCommand() *cobra.Command {
	parent := group("controller", "Install, upgrade and remove the controller on this machine")
	parent.AddCommand(a.controllerInstallCommand(), a.controllerUpgradeCommand(), a.controllerUninstallCommand())
	return parent
}

// systemdConfig is what the commands share.
func (a *App) systemdConfig(program string) (systemd.Config, error) {
	self, err := os.Executable()
	if err != nil {
		return systemd.Config{}, fmt.Errorf("find this program: %w", err)
	}
	if program == "" {
		program = filepath.Join(filepath.Dir(self), layout.Controller)
		if _, err := os.Stat(program); err != nil {
			return systemd.Config{}, usage(fmt.Errorf("there is no %s beside this program: name it with --program", layout.Controller))
		}
	}
	return systemd.Config{
		Program: program, Shoalctl: self, Healthy: a.healthy,
		Say: func(format string, args ...any) { _, _ = fmt.Fprintf(a.Out, format+"\n", args...) },
	}, nil
}

// healthy asks the controller on this machine for its version, as its administrator.
func (a *App) healthy(ctx context.Context, p controller.Plan) (string, error) {
	client, err := api.Dial(ctx, api.ClientConfig{
		Server: "tls://" + advertised(p.Listen), Creds: filepath.Join(p.Data, controller.AdminCreds), CA: filepath.Join(p.Data, controller.CABundle), Timeout: 5 * time.Second,
	})
	if err != nil {
		return "", err
	}
	defer client.Close()
	raw, err := client.Call(ctx, a.registry.Find(api.KindSystem, "get"), []byte(`{}`))
	if err != nil {
		return "", err
	}
	var answer struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return "", fmt.Errorf("read the controller's answer: %w", err)
	}
	return answer.Version, nil
}

func (a *App) controllerInstallCommand() *cobra.Command {
	var program string
	var noClock bool
	var patience time.Duration
	cmd := &cobra.Command{
		Use: "install [-- CONTROLLER FLAGS]", Short: "Put a controller on this machine, as a systemd unit",
		Long: `install puts shoal-controller and this program into ` + layout.BinDir + `, makes the user ` + layout.ControllerUser + ` whom the controller runs as, has chrony serve
the time to hosts, starts the controller, now and with the machine, waits until it answers, and shows the one-time password of the admin account. Its data is in
` + layout.ControllerData + `; what an earlier one has left there is taken up, such as from shoal-controller restore.

What follows -- are the controller's flags (see shoal-controller --help); they are kept in ` + layout.ControllerArgs + `. A directory for --backup-to must be ` + layout.ControllerUser + `'s.
Nothing is changed where flags or keys are not good, an address is taken, or another controller runs here. It may be repeated.`,
		Example: "  shoalctl controller install\n  shoalctl controller install -- --listen 10.0.0.1:4222 --http 10.0.0.1:8480 --tls-name cloud.example",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
				return usage(errors.New("flags of the controller come after --"))
			}
			cfg, err := a.systemdConfig(program)
			if err != nil {
				return err
			}
			cfg.Args, cfg.Clock, cfg.Patience = args, !noClock, patience
			done, err := systemd.Install(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			cfg.Say("the controller runs, version %s", done.Plan.Version)
			if done.Password != "" {
				cfg.Say("the admin account's one-time password, which is not shown again: %s", done.Password)
			}
			if done.Plan.NATSURL == "" {
				cfg.Say("next: shoalctl login --server tls://%s --account admin (compare the pin with: shoal-controller ca list)", advertised(done.Plan.Listen))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&program, "program", "", "file of shoal-controller (default: the one beside this program)")
	patienceFlag(f, &patience)
	f.BoolVar(&noClock, "no-clock", false, "leave chrony alone: hosts get the time elsewhere")
	return cmd
}

// patienceFlag is how long a controller may take.
func patienceFlag(f *pflag.FlagSet, d *time.Duration) {
	f.DurationVar(d, "patience", time.Minute, "how long the controller may take from its start until it answers; it reads the whole journal first")
}

// advertised is an address that one can dial on this machine.
func advertised(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return listen
}

func (a *App) controllerUpgradeCommand() *cobra.Command {
	var program string
	var patience time.Duration
	cmd := &cobra.Command{
		Use: "upgrade", Short: "Replace the controller on this machine, and take that back if it does not answer", Args: cobra.NoArgs,
		Long: `upgrade is run with the new shoalctl. It has the new controller look at flags and keys before anything is changed, stops the old one, copies keys and journal to
` + layout.ControllerData + `.before-upgrade, in place of the copy before, puts the new programs and unit in place, and starts them. When the new controller does not start, or does not answer
within --patience, the old programs and unit come back, with all that was acknowledged meanwhile. Guests and hosts go on.

Repeated after it was cut off, it does what is left to do. With an external NATS the journal is not copied: that is the servers' to keep.`,
		Example: "  ./shoalctl controller upgrade\n  shoalctl controller upgrade --program /root/new/shoal-controller",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.systemdConfig(program)
			if err != nil {
				return err
			}
			cfg.Patience = patience
			done, err := systemd.Upgrade(cmd.Context(), cfg)
			if back, ok := errors.AsType[*systemd.RolledBackError](err); ok {
				return (&resource.Error{Code: resource.CodeInternal, Message: back.Error()}).WithRemedy("what was there before the attempt is also kept in %s", back.Copy)
			}
			switch {
			case err != nil:
				return err
			case done.Same:
				cfg.Say("version %s is installed already, and answers", done.To)
			default:
				cfg.Say("upgraded from %s to %s, which answers; what was before is kept in %s", done.From, done.To, done.Copy)
			}
			return nil
		},
	}
	patienceFlag(cmd.Flags(), &patience)
	cmd.Flags().StringVar(&program, "program", "", "file of the new shoal-controller (default: the one beside this program)")
	return cmd
}

func (a *App) controllerUninstallCommand() *cobra.Command {
	var purge bool
	var confirm string
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Take the controller off this machine", Args: cobra.NoArgs,
		Long: `uninstall stops the controller and removes its program, unit and user's declaration. Hosts and guests go on without it. Keys and journal stay in ` + layout.ControllerData + `, so that
install takes them up again. With --purge they go, with all that is known of hosts and guests; --confirm must give the name of this machine then.`,
		Example: "  shoalctl controller uninstall\n  shoalctl controller uninstall --purge --confirm c1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := os.Hostname()
			switch {
			case err != nil:
				return err
			case purge && confirm != name:
				return usage(fmt.Errorf("--purge removes all keys and the journal for good: confirm it by the name of this machine, --confirm %s", name))
			case !purge && confirm != "":
				return usage(errors.New("--confirm goes with --purge"))
			}
			return systemd.Uninstall(cmd.Context(), purge, func(format string, args ...any) { _, _ = fmt.Fprintf(a.Out, format+"\n", args...) })
		},
	}
	cmd.Flags().BoolVar(&purge, "purge", false, "remove keys and journal as well")
	cmd.Flags().StringVar(&confirm, "confirm", "", "with --purge: the name of this machine")
	return cmd
}
