"""A bedside in a virtual machine: real drivers for video, sound, disk and watchdog, unplugged and cut off on purpose."""
