package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"shoal/agent/host"
	"shoal/agent/network"
	"shoal/desired"
)

// Actions are what the console does to a machine. Each answers with a line for the operator.
type Actions interface {
	// Look reads what is shown.
	Look(ctx context.Context) Node
	// Authenticate checks root's password.
	Authenticate(ctx context.Context, password string) error
	SetPassword(ctx context.Context, password string) (string, error)
	Change(ctx context.Context, c network.Change, cut network.Cut) (string, error)
	Confirm(ctx context.Context) (string, error)
	Revert(ctx context.Context) (string, error)
	Restart(ctx context.Context, service string) (string, error)
	Bundle(ctx context.Context) (string, error)
	Backup(ctx context.Context) (string, error)
	Enrol(ctx context.Context, token string) (string, error)
	Reboot(ctx context.Context) (string, error)
	PowerOff(ctx context.Context) (string, error)
}

var _ Actions = (*Machine)(nil)

// ErrPassword says that a password is not root's.
var ErrPassword = errors.New("that is not root's password; if root has none, log in at another console (Alt+F2) and run shoal-agent console as root")

// Authenticate implements Actions, with PAM's program for just that (unix_chkpwd(8)), which reads the password with a zero behind it.
func (m *Machine) Authenticate(ctx context.Context, password string) error {
	if strings.ContainsRune(password, 0) {
		return ErrPassword
	}
	_, err := m.Run.Run(ctx, host.Command{Name: "unix_chkpwd", Args: []string{"root", "nonull"}, Stdin: append([]byte(password), 0)})
	if errors.Is(err, host.ErrNotInstalled) {
		return err
	}
	if err != nil {
		return ErrPassword
	}
	return nil
}

// minPassword is the fewest characters that a password must have.
const minPassword = 8

// SetPassword implements Actions. The password goes over standard input, which nobody can list.
func (m *Machine) SetPassword(ctx context.Context, password string) (string, error) {
	if len(password) < minPassword || strings.ContainsAny(password, "\n\r\x00") {
		return "", fmt.Errorf("password: give at least %d characters on one line", minPassword)
	}
	if _, err := m.Run.Run(ctx, host.Command{Name: "chpasswd", Stdin: []byte("root:" + password + "\n")}); err != nil {
		return "", fmt.Errorf("set root's password: %w", err)
	}
	return "root's password is set", nil
}

// Change implements Actions.
func (m *Machine) Change(ctx context.Context, c network.Change, cut network.Cut) (string, error) {
	p, err := m.Network.Apply(ctx, c, cut)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: done, and rolled back in %d s unless it is confirmed", p.Change, int(m.Network.Left(p).Seconds())), nil
}

// Confirm implements Actions: whoever is at the console needs no network to undo a change.
func (m *Machine) Confirm(context.Context) (string, error) {
	if err := m.Network.Confirm("", "somebody at the console"); err != nil {
		return "", err
	}
	return "the change stays", nil
}

// Revert implements Actions.
func (m *Machine) Revert(ctx context.Context) (string, error) {
	if err := m.Network.RollBack(ctx, "as the operator said"); err != nil {
		return "", err
	}
	return "the change was rolled back", nil
}

// Restart implements Actions.
func (m *Machine) Restart(ctx context.Context, service string) (string, error) {
	if !slices.Contains(services(), service) {
		return "", fmt.Errorf("service: %q is none of %s", service, strings.Join(services(), ", "))
	}
	if _, err := m.Run.Run(ctx, host.Command{Name: "systemctl", Args: []string{"restart", service + ".service"}}); err != nil {
		return "", err
	}
	return service + " was restarted", nil
}

// Enrol implements Actions: this machine joins with a token, anew if it is a host already. The agent, which has the identity, stands aside
// meanwhile; guests run on.
func (m *Machine) Enrol(ctx context.Context, token string) (string, error) {
	if _, err := desired.ParseJoinToken(token); err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	systemctl := func(ctx context.Context, verb string) error {
		_, err := m.Run.Run(ctx, host.Command{Name: "systemctl", Args: []string{verb, "shoal-agent.service"}})
		return err
	}
	if err := systemctl(ctx, "stop"); err != nil {
		return "", err
	}
	_, err = m.Run.Run(ctx, host.Command{Name: self, Args: []string{"join", "--force", "--token-file", "-", "--data", m.Data}, Stdin: []byte(token)})
	// Whatever came of it, and also when the operator does not wait.
	if startErr := systemctl(context.WithoutCancel(ctx), "start"); startErr != nil {
		err = errors.Join(err, startErr)
	}
	if err != nil {
		return "", fmt.Errorf("join: %w", err)
	}
	return "this machine has joined; the top of the screen tells who it is", nil
}

// Reboot implements Actions.
func (m *Machine) Reboot(ctx context.Context) (string, error) {
	_, err := m.Run.Run(ctx, host.Command{Name: "systemctl", Args: []string{"reboot"}})
	return "the machine starts anew", err
}

// PowerOff implements Actions.
func (m *Machine) PowerOff(ctx context.Context) (string, error) {
	_, err := m.Run.Run(ctx, host.Command{Name: "systemctl", Args: []string{"poweroff"}})
	return "the machine is switched off", err
}

// controllerCreds are credentials of a controller on this machine, as the README has it.
const controllerCreds = "/var/lib/shoal-controller/admin.creds"

// Backup implements Actions: an archive of what makes this machine the host that it is - keys, ledger, notes of the kinds, network. Where a
// controller runs, it is told to make its own backup, too.
func (m *Machine) Backup(ctx context.Context) (string, error) {
	name := filepath.Join(m.Archives, m.fileName("shoal-host-backup"))
	a := newArchive(time.Now())
	for _, dir := range []string{m.Data, "/etc/systemd/network"} {
		// The guests' disks are elsewhere; sockets, pipes and locks are of no use.
		if err := a.tree(dir, nil); err != nil {
			return "", fmt.Errorf("back up %s: %w", dir, err)
		}
	}
	if err := a.write(name); err != nil {
		return "", fmt.Errorf("write backup: %w", err)
	}
	said := name + " holds this host's private keys: keep it where nobody gets at it"
	if _, err := os.Stat(controllerCreds); err == nil {
		out, err := m.Run.Run(ctx, host.Command{Name: "shoalctl", Args: []string{"--creds", controllerCreds, "backup", "create", "--wait"}})
		if err != nil {
			return "", fmt.Errorf("%s; but the controller's own backup was not made: %w", said, err)
		}
		said += "; the controller: " + string(bytes.TrimSpace(out))
	}
	return said, nil
}

func (m *Machine) fileName(what string) string {
	name, err := os.Hostname()
	if err != nil {
		name = "host"
	}
	return fmt.Sprintf("%s-%s-%s.tar.gz", what, name, time.Now().UTC().Format("20060102T150405Z"))
}
