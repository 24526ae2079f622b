package dhcp_test

import (
	"testing"

	"shoal/agent/sim/netbox"
)

func TestMain(m *testing.M) { netbox.Main(m) }
