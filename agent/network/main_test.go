package network

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"shoal/agent/host"
	"shoal/agent/networkd"
	"shoal/agent/sim/netbox"
)

// In place of the tests, this binary is the guard of a test, or an operator's command that stays until it is killed.
const (
	guardEnv    = "SHOAL_TEST_GUARD"
	operatorEnv = "SHOAL_TEST_OPERATOR"
)

func TestMain(m *testing.M) {
	if data := os.Getenv(guardEnv); data != "" {
		exit(open(data, kernel(), nil).Guard(context.Background()))
	}
	if data := os.Getenv(operatorEnv); data != "" {
		if _, err := open(data, kernel(), detach(data)).Apply(context.Background(), SetAddress{Device: "lan1", Addressing: static("10.99.0.2/24")}, Cut{}); err != nil {
			exit(err)
		}
		fmt.Fprintln(os.Stdout, "applied")
		<-context.Background().Done()
	}
	netbox.Main(m)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func kernel() Kernel { return Kernel{Run: host.Machine{}} }

func open(data string, m Machine, guard func(context.Context) error) *Network {
	// Nothing runs out by itself, however slow the machine is; see expire.
	n, err := New(Config{Data: data, Units: networkd.Dir, Machine: m, Guard: guard, Patience: time.Hour})
	if err != nil {
		exit(err)
	}
	return n
}

// detach starts a guard as an agent does, with this binary.
func detach(data string) func(context.Context) error {
	return func(ctx context.Context) error {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		return host.Detach(ctx, "", host.Command{Name: "env", Args: []string{guardEnv + "=" + data, self}})
	}
}
