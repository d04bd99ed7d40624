"""What people look at: videos, contact sheets, figures and the HTML report."""
