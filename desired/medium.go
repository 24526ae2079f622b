package desired

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Mode is what an installation makes of a machine.
type Mode string

// The modes. Each has the base system; compute has the agent, management the agent and a controller, storage an NFS server.
const (
	ModeManagement Mode = "management"
	ModeCompute    Mode = "compute"
	ModeStorage    Mode = "storage"
	ModeExpert     Mode = "expert"
)

// Modes are all of them.
func Modes() []Mode { return []Mode{ModeManagement, ModeCompute, ModeStorage, ModeExpert} }

// MediumLabel is the volume label of installation media.
const MediumLabel = "SHOAL_INSTALL"

// Names on an installation medium. The two files are in one directory, the kickstart's includes beside them.
const (
	HostMediumFile      = "host.json"
	HostMediumKickstart = "ks.cfg"
)

// HostMedium says what an installation medium makes of a machine, beside the kickstart.
type HostMedium struct {
	// ID tells this medium from others: it follows from all that is on it. 16 hex digits.
	ID   string `json:"id"`
	Mode Mode   `json:"mode"`
	// Token is the join token that the host enrols itself with, empty for none. It holds a secret.
	Token string `json:"token,omitempty"`
}

// Validate checks what the installer relies on.
func (h HostMedium) Validate() error {
	if !slices.Contains(Modes(), h.Mode) {
		return fmt.Errorf("the mode %q is not one of management, compute, storage, expert", h.Mode)
	}
	if len(h.ID) != 16 || strings.Trim(h.ID, "0123456789abcdef") != "" {
		return fmt.Errorf("the id %q is not 16 hex digits", h.ID)
	}
	if h.Token == "" {
		return nil
	}
	if h.Mode == ModeExpert {
		return errors.New("the mode expert has no agent that could use a join token")
	}
	_, err := ParseJoinToken(h.Token)
	return err
}
