package metal

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"shoal/agent/host"
	"shoal/desired"
	"shoal/desired/layout"
)

// shoal puts Shoal's own programs into the system at root, and says which units to switch on.
func (i *installer) shoal(root string) ([]string, error) {
	mode := i.host.Mode
	programs := map[string]bool{layout.Shoalctl: mode == desired.ModeManagement, layout.Controller: mode == desired.ModeManagement, layout.Agent: mode != desired.ModeExpert}
	var units []string
	write := func(f layout.File) error {
		if err := host.WriteFile(filepath.Join(root, f.Path), []byte(f.Content), f.Mode); err != nil {
			return fmt.Errorf("write %s: %w", f.Path, err)
		}
		return nil
	}
	for _, name := range []string{layout.Agent, layout.Controller, layout.Shoalctl} {
		if !programs[name] {
			continue
		}
		b, err := os.ReadFile(filepath.Join(i.cfg.Medium, "shoal", "bin", name))
		if err != nil {
			return nil, damaged(err)
		}
		if err := write(layout.File{Path: filepath.Join(layout.BinDir, name), Content: string(b), Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	var files []layout.File
	if programs[layout.Agent] {
		files = append(append(files, layout.AgentFiles()...), layout.Console())
		units = append(units, layout.AgentUnit, "libvirtd.service")
	}
	if programs[layout.Controller] {
		files = append(append(files, layout.ControllerFiles()...), layout.ControllerClock())
		units = append(units, layout.ControllerUnit)
	}
	if token, err := desired.ParseJoinToken(i.host.Token); err == nil {
		files = append(files, layout.HostClock(token.URLs))
	}
	for _, f := range files {
		if err := write(f); err != nil {
			return nil, err
		}
	}
	if mode == desired.ModeStorage {
		units = append(units, "nfs-kernel-server.service")
	}
	if i.host.Token != "" {
		identity := filepath.Dir(filepath.Join(root, layout.AgentToken))
		for dir, perm := range map[string]os.FileMode{filepath.Dir(identity): 0o711, identity: 0o700} {
			err := os.MkdirAll(dir, perm)
			if err == nil {
				err = os.Chmod(dir, perm)
			}
			if err != nil {
				return nil, fmt.Errorf("make the agent's directory: %w", err)
			}
		}
		if err := write(layout.File{Path: layout.AgentToken, Content: i.host.Token + "\n", Mode: 0o600}); err != nil {
			return nil, err
		}
	}
	slices.Sort(units)
	return units, nil
}
