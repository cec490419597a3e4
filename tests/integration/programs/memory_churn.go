// Slices and a map, whose sum is asked for, before and after all of them are replaced.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
)

type object struct {
	number int
	text   string
}

var objects []*object
var table = map[string]*object{}
var bytes = make([]byte, 20_000_000)

func check() int {
	total := 0
	for _, each := range objects {
		total += each.number + len(each.text)
		if table[each.text].number != each.number {
			total -= 1_000_000_000
		}
	}
	for at := 0; at < len(bytes); at += 4096 {
		total += int(bytes[at])
	}
	return total
}

func churn() string {
	before := check()
	for round := 0; round < 10; round++ {
		done := make(chan bool)
		for part := 0; part < 4; part++ {
			go func(part int) {
				for i := part; i < len(objects); i += 4 {
					copied := *objects[i]
					objects[i] = &copied
				}
				for _, each := range make([]byte, 5_000_000) {
					if each != 0 {
						panic("a new slice is not zero")
					}
				}
				done <- true
			}(part)
		}
		for part := 0; part < 4; part++ {
			<-done
		}
		runtime.GC()
		debug.FreeOSMemory() // MADV_DONTNEED
		bytes = append([]byte(nil), bytes...)
	}
	if check() != before {
		return "the sum has changed"
	}
	return "same"
}

func main() {
	for i := 0; i < 200_000; i++ {
		each := &object{i, fmt.Sprint("x", i)}
		objects = append(objects, each)
		table[each.text] = each
	}
	for at := range bytes {
		bytes[at] = 7
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if lines.Text() == "churn" {
			fmt.Println(churn())
		} else {
			fmt.Println(check())
		}
	}
}
