module invoice

go 1.27
