module agent

go 1.27
